"""The command line, as `python -m service` in a checkout. Once installed, it is `quickstudy`."""

from quickstudy.commands.cli import command_line

from service.running.commands import COMMANDS

main = command_line(COMMANDS)

if __name__ == "__main__":
    main()
