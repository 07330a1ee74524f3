"""What `vla data doctor` looks at, one file each: `check(case) -> (findings, numbers)`.
A check says nothing about healthy data; its numbers are reported all the same. See data/doctor.py.
"""
