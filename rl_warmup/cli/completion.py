"""`rl-warmup completion bash|zsh|fish`: a script that completes commands and flags.

bash: eval "$(rl-warmup completion bash)"; zsh: the same with zsh, after compinit; fish: rl-warmup completion fish | source"""

from __future__ import annotations

import argparse
import io
import re
from contextlib import redirect_stdout, suppress
from importlib import import_module

from rl_warmup.cli.main import COMMANDS, OptionParser
from rl_warmup.runtime.settings import EFFECTIVE

BASH = """_rl_warmup() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="{commands}" ;;
  esac
  [ "$COMP_CWORD" = 1 ] && words="{commands}"
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _rl_warmup rl-warmup"""


def command(args: list[str]) -> None:
    """Print the script."""
    parser = OptionParser(
        prog="rl-warmup completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    shell = parser.parse_args(args).shell
    flags = {name: flags_of(name) for name in COMMANDS}
    if shell == "fish":
        print(f'complete -c rl-warmup -n __fish_use_subcommand -f -a "{" ".join(COMMANDS)}"')
        for name, known in flags.items():
            seen = f'complete -c rl-warmup -n "__fish_seen_subcommand_from {name}" -l '
            print("\n".join(seen + flag.removeprefix("--") for flag in known))
        return
    cases = "\n".join(f'    {name}) words="{" ".join(known)}" ;;' for name, known in flags.items())
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    print(start + BASH.format(cases=cases, commands=" ".join([*COMMANDS, "help", "--version"])))


def flags_of(name: str) -> list[str]:
    """The flags of a command, as its help lists them; train's are all settings."""
    text = io.StringIO()
    if name != "completion":
        with redirect_stdout(text), suppress(SystemExit):
            import_module(f"rl_warmup.cli.{name}").command(["--help"])
    found = {*re.findall(r"(?<![\w-])--[a-z][\w-]*", text.getvalue()), "--help"}
    if name == "train":
        found |= {f"--{setting}" for setting in EFFECTIVE}
    return sorted(found - {"--key", "--no_key"})
