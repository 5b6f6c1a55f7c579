"""Does vdiff lose anything? A campaign of seeded faults against the real command line, on the
digits.

    python benchmarks/faults.py --count 500 --seed 0

Of every twenty faults six are kills, four signals, one a full disk, three damaged files, one a
hostile input, two things of the user's in the way, two refusals of the machine and one a network
that is not finite. Kills, signals and full disks strike `python -m vdiff` in processes of its own,
several one after the other on the same run;
then the same command must complete it, and what it leaves must have the hashes of a run that nobody
disturbed.
"""

import sys

from faulting.campaign import main

if __name__ == "__main__":
    sys.exit(main())
