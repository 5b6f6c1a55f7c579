"""Does vdiff lose anything? A campaign of seeded faults against the real command line, on the digits.

    python benchmarks/faults.py --count 500 --seed 0

Of every ten faults four are kills, two signals, one a full disk, two damaged files and one a hostile input. Kills,
signals and full disks strike `python -m vdiff` in processes of its own, several one after the other on the same run;
then the same command must complete it, and what it leaves must have the hashes of a run that nobody disturbed.
"""

import sys

from faulting.campaign import main

if __name__ == "__main__":
    sys.exit(main())
