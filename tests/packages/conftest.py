# These tests run where their packages are installed: see tests/test_packages.py.
collect_ignore_glob = ["*/test_*.py"]
