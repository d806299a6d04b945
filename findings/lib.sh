# Sourced by each finding: a temporary folder, packages in it, network namespaces, and the comparison with what was seen.

PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
seen=$work/seen
processes=()
namespaces=()

finish() {
    local process namespace
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null || true; done
    for process in "${processes[@]}"; do wait "$process" 2>/dev/null || true; done
    for namespace in "${namespaces[@]}"; do
        for process in $(ip netns pids "$namespace"); do kill "$process" 2>/dev/null || true; done
        ip netns del "$namespace" || true
    done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

# Install PyPI packages into a virtual environment of their own: packages NAME==VERSION...
packages() {
    "$PYTHON" -m venv --without-pip "$work/venv"
    "$PYTHON" -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check "$@" 2>"$work/pip" ||
        { cat "$work/pip" >&2; exit 1; }
}

# Run Python with these packages, without what the caller's environment says about proxies.
py() {
    env -u http_proxy -u https_proxy -u all_proxy -u no_proxy -u HTTP_PROXY -u HTTPS_PROXY -u ALL_PROXY -u NO_PROXY \
        -u PYTHONPATH "$work/venv/bin/python" -W ignore "$@"
}

# Have Debian packages in exactly these versions, installed or unpacked into the temporary folder: debian NAME=VERSION...
debian() {
    local package
    mkdir -p "$work/root"
    for package in "$@"; do
        if [ "$(dpkg-query -W -f '${Version}' "${package%%=*}" 2>/dev/null)" != "${package#*=}" ]; then
            (cd "$work" && apt-get download --quiet=2 "$package") || { echo "cannot be had: $package" >&2; exit 1; }
            dpkg-deb -x "$work/${package%%=*}"_*.deb "$work/root"
        fi
    done
    PATH=$work/root/usr/sbin:$work/root/usr/bin:$work/root/sbin:$work/root/bin:$PATH
}

needs_root() {
    [ "$(id -u)" = 0 ] || { echo "not run: it makes network namespaces, which needs root"; exit 77; }
}

# The status 77 tells the runner that nothing was run.
needs_tun() {
    [ -c /dev/net/tun ] || { echo "not run: it needs /dev/net/tun"; exit 77; }
}

# A host with two uplinks, wan0 (10.1.0.2, the default) and wan1 (10.2.0.2), to a router that also has 10.9.0.10, the server's address.
two_uplinks() {
    needs_root
    HOST=finding-host-$$ ROUTER=finding-router-$$
    local namespace number
    for namespace in "$HOST" "$ROUTER"; do
        ip netns add "$namespace"
        namespaces+=("$namespace")
        ip -n "$namespace" link set lo up
    done
    ip -n "$ROUTER" address add 10.9.0.10/32 dev lo
    for number in 0 1; do
        ip link add "wan$number" netns "$HOST" type veth peer name "lan$number" netns "$ROUTER"
        ip -n "$HOST" address add "10.$((number + 1)).0.2/24" dev "wan$number"
        ip -n "$ROUTER" address add "10.$((number + 1)).0.1/24" dev "lan$number"
        ip -n "$ROUTER" link set "lan$number" up
        ip -n "$HOST" link set "wan$number" up
        ip -n "$HOST" route add default via "10.$((number + 1)).0.1" dev "wan$number" metric "$((number + 1))00"
    done
}

host() { ip netns exec "$HOST" "$@"; }
router() { ip netns exec "$ROUTER" "$@"; }

# Wait until a command succeeds, at most ten seconds.
until_it() {
    local attempt
    for attempt in $(seq 100); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "this did not come true: $*" >&2
    exit 1
}

# Start a program in a namespace and in the background, to be ended at the end: start NAMESPACE COMMAND...
# ("ip netns exec" becomes the command, so the process id is its own. A function in the background would be a shell around it.)
start() {
    ip netns exec "$@" &
    processes+=($!)
}

# The same, and wait for the line "ready" in its output, which is kept in $work/output.N, N being ${#processes[@]} before.
serve() {
    local output=$work/output.${#processes[@]}
    start "$@" >"$output" 2>&1
    until_it grep -q ready "$output"
}

# Compare what was printed into $seen with standard input.
compare() {
    if ! diff -u --label "seen when this was written" --label "seen now" - "$seen"; then
        echo "$(basename "$0" .sh): changed"
        exit 1
    fi
    echo "$(basename "$0" .sh): as it was seen"
}
