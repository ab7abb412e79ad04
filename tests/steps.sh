# shellcheck shell=bash
# What tests/compose and tests/units tell while they go on, and how they wait. They source it after .ci/toolchain.sh.

started=$SECONDS
# done_step TEXT: one line, with the time since the beginning.
done_step() { printf '%5d s  %s\n' $((SECONDS - started)) "$*"; }

# until_true SECONDS WHAT COMMAND…: says what the command said last, when it does not succeed in that time.
until_true() {
    local deadline=$((SECONDS + $1)) what=$2 said
    shift 2
    until said=$("$@" 2>&1); do
        ((SECONDS < deadline)) || { printf '%s\n' "$said" >&2; die "$what: not within the time"; }
        sleep 0.5
    done
}
