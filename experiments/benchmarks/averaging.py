"""How fast M_s is built for every speaker, beside a plain copy of the same files.

Speakers' models lie on disk. A plain copy reads each and writes it; a rule builds each speaker's
M_s and writes it. All write to one file, again and again, which stays in the page cache; `cold`
drops what the page cache holds of the models before each repetition, `warm` reads them once before.
The bytes counted are one model read and one written for each speaker, whatever a rule reads twice.
"""
