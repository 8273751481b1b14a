"""`python -P -m master`: the master daemon."""

from master.options import command

if __name__ == "__main__":
    command()
