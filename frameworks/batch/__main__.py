"""`python -P -m frameworks.batch`: the batch daemon."""

from frameworks.batch.options import command

if __name__ == "__main__":
    command()
