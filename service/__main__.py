"""`python -m service`: the command line from a checkout; the console script `quickstudy` is the same, installed."""

from quickstudy.commands.cli import command_line

from service.running.commands import COMMANDS

main = command_line(COMMANDS)

if __name__ == "__main__":
    main()
