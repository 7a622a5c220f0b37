"""What is known of programs: data for `commands`, no logic.

A program that is in no table is unknown: it asks unless the policy names it.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Directories whose programs are the system's own (read-only in the pod): `/usr/bin/git` is `git`.
SYSTEM_DIRECTORIES = frozenset(("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"))

SHELLS = _words("sh bash dash zsh ksh ash fish csh tcsh busybox")

# Programs that run a language: with inline code, a script or a module they can do anything that the pod lets them.
INTERPRETERS = _words(
    "python python2 python3 pypy pypy3 ipython perl ruby irb node nodejs deno bun php lua luajit tclsh wish Rscript R "
    "julia guile racket scheme sbcl clisp erl elixir iex ghc runghc ocaml scala kotlin groovy jshell java pwsh"
)

_VERSIONED = INTERPRETERS | SHELLS


def unversioned(program: str) -> str:
    """`python3.11` and `bash5` by the name that the tables know them by; `git2` is nobody's git, and stays."""
    stem = program.rstrip("0123456789.")
    return stem if stem in _VERSIONED else program


# Options by which an interpreter takes code from its command line.
CODE_OPTIONS: dict[str, tuple[str, ...]] = {
    "python": ("-c",), "perl": ("-e", "-E"), "ruby": ("-e",), "node": ("-e", "--eval", "-p", "--print"),
    "php": ("-r", "-B", "-R", "-E"), "lua": ("-e",), "deno": ("eval",), "bun": ("-e", "--eval"),
    "Rscript": ("-e",), "julia": ("-e", "-E"), "pwsh": ("-c", "-Command", "-EncodedCommand"),
}  # fmt: skip

# Reading, text work, builds and tests of an ordinary project: unattended under low_risk.
ORDINARY = _words(
    "true false : echo printf pwd ls cat head tail wc sort uniq cut tr nl tac rev paste join comm fold fmt expand "
    "unexpand column diff diff3 sdiff cmp file stat du df date basename dirname realpath readlink test [ expr seq "
    "sleep id whoami uname nproc arch locale tty getconf which type hostname "
    "md5sum sha1sum sha224sum sha256sum sha384sum sha512sum b2sum cksum sum base32 base64 xxd od hexdump strings tree "
    "grep egrep fgrep rg ag ack sed awk gawk mawk nawk find fd jq yq "
    "mkdir touch cp mv ln rm rmdir chmod truncate mktemp install tee split csplit shuf patch tsort "
    "tar zip unzip gzip gunzip zcat bzip2 bunzip2 bzcat xz unxz xzcat zstd unzstd "
    "make gmake cmake ctest ninja meson bazel bazelisk buck2 scons ant mvn gradle sbt lein mix rebar3 stack cabal dune "
    "cargo rustc rustfmt go gofmt gcc g++ cc c++ cpp clang clang++ clang-format clang-tidy ld lld ar ranlib nm objdump "
    "readelf size javac jar dotnet msbuild swift swiftc zig nim crystal "
    "npm yarn pnpm tsc eslint prettier jest vitest mocha ava tap webpack rollup vite esbuild swc babel biome "
    "pytest py.test tox nox mypy pyright ruff black isort flake8 pylint pyflakes pycodestyle bandit coverage "
    "rspec rake rubocop phpunit phpstan composer shellcheck shfmt hadolint yamllint markdownlint codespell "
    "git"
)

# Programs whose purpose is to talk to another machine: they need web_fetch besides run_bash.
NETWORK = _words(
    "curl wget aria2c http https httpie xh nc ncat netcat socat telnet ftp lftp tftp sftp scp ssh rsync rclone dig "
    "host nslookup ping ping6 traceroute tracepath mtr nmap mail mailx sendmail mutt msmtp aws gcloud gsutil az doctl "
    "heroku flyctl vercel netlify wrangler kubectl helm terraform pulumi docker podman buildah skopeo crane gh glab "
    "hub twine s3cmd mc restic borg croc ngrok cloudflared tailscale lynx links w3m elinks websocat grpcurl ab wrk hey "
    "whois rsh rlogin ldapsearch smbclient"
)

# Package managers' subcommands that publish or fetch.
NETWORK_SUBCOMMANDS: dict[str, frozenset[str]] = {
    "npm": _words("publish unpublish login adduser install i ci add update audit view info search dist-tag"),
    "pnpm": _words("publish login install i add update audit dlx"),
    "yarn": _words("publish login install add upgrade audit dlx npm"),
    "cargo": _words("publish login install add update search fetch owner yank"),
    "go": _words("get"),
    "composer": _words("install update require global"),
    "dotnet": _words("nuget restore add"),
    "mix": _words("hex.publish deps.get"),
    "mvn": _words("deploy"),
    "gradle": _words("publish"),
}  # fmt: skip

# They open files that their operands name, so a bare word (`cat token`) is a path.
READERS = _words(
    "cat head tail less more tac nl wc sort uniq cut diff diff3 sdiff cmp strings xxd od hexdump base32 base64 cp mv "
    "patch ln tar zip gzip zstd xz bzip2 dd tee ls stat file find tree install rm chmod touch truncate md5sum sha1sum "
    "sha256sum sha512sum grep egrep fgrep rg ag ack sed awk gawk mawk nawk jq yq scp rsync split rev paste join "
    "comm fold git"
)

# The first operand of these is an expression, not a file.
EXPRESSION_FIRST = _words("grep egrep fgrep rg ag ack sed awk gawk mawk nawk jq yq")

# They change the files that they name.
WRITERS = _words("mkdir touch cp mv ln rm rmdir chmod truncate install tee split csplit patch dd shred unlink")

# Wrappers that run the command in their operands: option letters that take a value, and operands before the command.
TRANSPARENT: dict[str, tuple[frozenset[str], int]] = {
    "nice": (_words("-n --adjustment"), 0),
    "ionice": (_words("-c -n -p --class --classdata"), 0),
    "nohup": (frozenset(), 0),
    "setsid": (frozenset(), 0),
    "timeout": (_words("-s -k --signal --kill-after"), 1),
    "stdbuf": (_words("-i -o -e --input --output --error"), 0),
    "time": (_words("-f -o --format --output"), 0),
    "chrt": (_words("-T -P -D"), 1),
    "taskset": (frozenset(), 1),
    "command": (frozenset(), 0),
    "builtin": (frozenset(), 0),
    "exec": (_words("-a"), 0),
}  # fmt: skip

# Wrappers that change who or where the command is, or take it from input: unwrapped for denial, never unattended.
OPAQUE_WRAPPERS: dict[str, tuple[frozenset[str], int]] = {
    "sudo": (_words("-u -g -h -p -C -T -r -t -D -R -U"), 0),
    "doas": (_words("-u -C"), 0),
    "su": (_words("-s -g -G"), 0),
    "xargs": (_words("-a -d -E -I -i -L -n -P -s --arg-file --delimiter --max-args --max-procs --replace"), 0),
    "parallel": (_words("-j -a -I --jobs"), 0),
    "chroot": (_words("--userspec --groups"), 1),
    "unshare": (frozenset(), 0),
    "nsenter": (_words("-t -S -G"), 0),
    "setpriv": (frozenset(), 0),
    "runuser": (_words("-u -g -G"), 0),
    "strace": (_words("-e -o -p -s -u -E"), 0),
    "ltrace": (_words("-e -o -p -s -u"), 0),
    "script": (_words("-c"), 0),
    "watch": (_words("-n"), 0),
    "entr": (frozenset(), 0),
    "flock": (_words("-w -E"), 1),
    "proot": (_words("-r -b -w"), 0),
    "npx": (_words("-p --package"), 0),
    "bunx": (frozenset(), 0),
    "pipx": (frozenset(), 1),
    "uvx": (_words("--from --with"), 0),
    "systemd-run": (_words("-p -u"), 0),
}  # fmt: skip

# Long options of the wrappers above that take no value. All others, abbreviations too, can be read in two ways.
PLAIN_WRAPPER_OPTIONS = _words(
    "--foreground --preserve-status --verbose --fork --wait --ctty --append --portability --quiet --fifo --rr --other "
    "--batch --idle --reset-on-fork --all-tasks --cpu-list --ignore --help --version"
)
PLAIN_ENV_OPTIONS = _words("- -i -0 -v --ignore-environment --null --debug --help --version")
PLAIN_SED_OPTIONS = _words(
    "--quiet --silent --debug --follow-symlinks --null-data --zero-terminated --posix --regexp-extended --separate "
    "--unbuffered --sandbox --help --version"
)

# Subcommands whose words are another command.
EXEC_SUBCOMMANDS: dict[str, frozenset[str]] = {
    "cmake": _words("-E"), "npm": _words("exec x explore"), "pnpm": _words("exec dlx"), "yarn": _words("exec dlx"),
}  # fmt: skip

# Programs that take their short options in bundles (`-xIf`) and have escapes among them.
BUNDLING = _words("tar zip make gmake fd curl")

# Programs that can run another one by a feature of their own: always a person's decision under low_risk.
ESCAPING = _words(
    "vim vi nvim ex view emacs nano ed less more man gdb lldb screen tmux expect ssh-agent at batch crontab dbus-send "
    "eval source . trap busybox toybox"
)

# Options of otherwise ordinary programs that run a program or leave their job; a prefix match on the word, "=" aside.
ESCAPE_OPTIONS: dict[str, tuple[str, ...]] = {
    "find": ("-exec", "-execdir", "-ok", "-okdir", "-delete", "-fprint", "-fprint0", "-fprintf", "-fls"),
    "fd": ("-x", "-X", "--exec", "--exec-batch"),
    "tar": (
        "--checkpoint-action", "--to-command", "--use-compress-program", "-I", "--rsh-command", "--info-script",
        "--new-volume-script", "-F", "--rmt-command", "-P", "--absolute-names",
    ),
    "zip": ("-TT", "--unzip-command", "-T"),
    "rg": ("--pre", "--hostname-bin"),
    "ag": ("--pager",),
    "ack": ("--pager",),
    "sort": ("--compress-program",),
    "split": ("--filter",),
    "make": ("--eval", "-E"),
    "gmake": ("--eval", "-E"),
    "tee": (),
    "install": ("--strip-program",),
    "gcc": ("-wrapper", "-B", "-fplugin", "-specs"),
    "g++": ("-wrapper", "-B", "-fplugin", "-specs"),
    "cc": ("-wrapper", "-B", "-fplugin", "-specs"),
    "clang": ("-fplugin", "-Xclang"),
    "rustc": ("linker=", "--codegen"),
    "go": ("-exec", "-toolexec", "-vettool"),
    "cargo": ("--config",),
    "rsync": ("-e", "--rsh", "--rsync-path"),
    "ssh": ("-o", "-F", "-L", "-R", "-D", "-W"),
    "scp": ("-o", "-S", "-F", "-J"),
    "curl": ("-K", "--config"),
    "jq": (),
    "date": ("-s", "--set"),
    "hostname": ("-b", "-F"),
    "psql": ("\\!", "program", "PROGRAM"), "sqlite3": (".shell", ".system"), "mysql": ("\\!", "system"),
}  # fmt: skip

# git: options before the subcommand. With a value in the next word / those that make git run or read something else.
GIT_VALUE_OPTIONS = _words(
    "-C -c --git-dir --work-tree --namespace --exec-path --config-env --super-prefix --attr-source"
)
GIT_ESCAPES = _words("-c --exec-path --config-env --git-dir --work-tree")
GIT_PLAIN_OPTIONS = _words(
    "-p --paginate -P --no-pager --no-replace-objects --bare --literal-pathspecs --glob-pathspecs --noglob-pathspecs "
    "--icase-pathspecs --no-optional-locks --no-lazy-fetch --no-advice -v --version -h --help"
)
GIT_BUNDLED = {"rebase": "x", "clean": "x", "grep": "O"}  # one letter in a bundle of short options
GIT_SUBCOMMAND_ESCAPES = _words(
    "--upload-pack --receive-pack --exec --ext-diff --textconv --open-files-in-pager -O --output --template "
    "--config -x --run --tool --extcmd --gpg-program --separate-git-dir --filters --remote"
)
GIT_UNATTENDED = _words(
    "status diff log show branch rev-parse rev-list ls-files ls-tree blame describe shortlog reflog stash add restore "
    "worktree checkout switch mv rm reset tag show-ref symbolic-ref name-rev merge-base cherry grep whatchanged "
    "diff-tree diff-index diff-files for-each-ref count-objects check-ignore check-attr var version help init "
    "clean notes"
)
GIT_COMMITS = _words("commit am merge rebase cherry-pick revert commit-tree fast-import filter-branch pull")
GIT_NETWORK = _words("fetch pull clone ls-remote remote-http remote-https fetch-pack archive-remote svn p4 daemon")
GIT_PUSHES = _words("push send-pack send-email request-pull http-push")

# Environment variables that make the next program run or load something else.
LOADER_VARIABLES = _words(
    "PATH IFS ENV BASH_ENV SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND EDITOR VISUAL PAGER BROWSER MANPAGER LESSOPEN "
    "LESSCLOSE NODE_OPTIONS NODE_PATH RUBYOPT RUBYLIB RUSTC RUSTC_WRAPPER RUSTFLAGS CC CXX LD MAKEFLAGS "
    "JAVA_TOOL_OPTIONS _JAVA_OPTIONS CLASSPATH GCONV_PATH HOSTALIASES SSH_ASKPASS SSH_AUTH_SOCK TAR_OPTIONS "
    "RIPGREP_CONFIG_PATH GREP_OPTIONS HOME"
)
LOADER_PREFIXES = ("LD_", "DYLD_", "PYTHON", "PERL", "GIT_", "npm_config_", "NPM_CONFIG_", "CARGO_", "BASH_FUNC_")

# They read, make or change credentials: program → its first operands that do; "*" for all of its uses. Denied unless a
# rule names the program itself.
CREDENTIALS: dict[str, frozenset[str]] = {
    "gh": _words("auth config secret ssh-key gpg-key codespace"),
    "glab": _words("auth config token ssh-key"),
    "hub": _words("api"),
    "aws": _words("configure sso sts iam secretsmanager ssm kms"),
    "gcloud": _words("auth config iam secrets init"),
    "gsutil": _words("config"),
    "az": _words("login account ad keyvault"),
    "doctl": _words("auth"),
    "heroku": _words("auth auth:token authorizations login config"),
    "flyctl": _words("auth tokens"),
    "vercel": _words("login env"),
    "netlify": _words("login env"),
    "wrangler": _words("login secret"),
    "kubectl": _words("config create-token"),
    "docker": _words("login logout"),
    "podman": _words("login logout"),
    "helm": _words("registry"),
    "terraform": _words("login logout"),
    "pulumi": _words("login config"),
    "npm": _words("token login adduser logout whoami config get set"),
    "pnpm": _words("login logout config get set"),
    "yarn": _words("login logout config"),
    "cargo": _words("login logout owner"),
    "gem": _words("signin signout"),
    "git": _words("credential credential-store credential-cache"),
    "huggingface-cli": _words("login"),
    **dict.fromkeys(
        _words(
            "twine vault op bw pass gopass secret-tool keyring "
            "security aws-vault chamber sops ssh-add ssh-agent gpg-agent"
        ),
        _words("*"),
    ),
}

# Commands of the shell itself that can run, define or change something; `cd` is followed, `exit` and these do nothing.
SHELL_OWN = _words(
    "alias bg bind break caller compgen complete compopt continue declare dirs disown enable eval exec export fc fg "
    "getopts hash help history jobs let local logout mapfile popd pushd read readarray readonly return set shift shopt "
    "source . suspend times trap typeset ulimit umask unalias unset wait"
)
SHELL_SETTINGS = frozenset(("set", f"-{letters}") for letters in ("e", "u", "x", "eu", "ue", "ex", "eux"))

# Admits shell strings of plain commands each of which the same list admits, and nothing else.
STRINGS = "shell_strings"

SETS: dict[str, frozenset[str]] = {
    STRINGS: _words("sh bash dash"),
    # A shell with a script is an interpreter; with a string or its input it is flagged, and no set covers that.
    "ordinary": ORDINARY | INTERPRETERS | SHELLS,
    "interpreters": INTERPRETERS | SHELLS,
    "shells": SHELLS,
    "network": NETWORK,
}
