"""A large RNN-T made small by module replacing (LCMR), and what that is compared with.

Zhao, Nguyen, Jain, Susanj, Mouchtaris, Gupta, Zhao, "Knowledge Distillation via Module Replacing
for Automatic Speech Recognition with Recurrent Neural Network Transducer", Interspeech 2022.
Teacher and student are cut into modules (`modules`); while the student learns, each of its modules
may be stood in for by the teacher's (`hybrid`), ever more rarely (`schedules`). `lattice` is the
distillation that it is compared with. `cells` says what there is to train, `learner` trains one,
`launch` runs it all and `results` makes the table.
"""
