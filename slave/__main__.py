"""`python -P -m slave`: the slave daemon."""

from slave.options import command

if __name__ == "__main__":
    command()
