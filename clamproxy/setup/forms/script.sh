#!/bin/sh
# Make this machine's freshclam use the gateway @GATEWAY@. Run it as root; it may run again at any time.
#
#   --keep-cooldown    leave a cool-down in force: freshclam then asks nobody until it is over
#
# CLAMPROXY_CONF names freshclam.conf, if it isn't in one of the usual places. If the gateway asks for a user,
# CLAMPROXY_USER and CLAMPROXY_PASSWORD give name and password; without them, the script asks on the terminal.
#
# The last line starts it, so that a script that arrives only in part does nothing.
set -eu

main() {
    root=${CLAMPROXY_ROOT:-} # for tests
    keep_cooldown=false
    for argument in "$@"; do
        case $argument in
        --keep-cooldown) keep_cooldown=true ;;
        *) die "unknown option $argument" ;;
        esac
    done
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || die "run this as root"
    command -v freshclam >/dev/null || die "freshclam is not installed"
    umask 022 # freshclam's files are for clamd, too; secrets are in directories of mode 700
    conf=$(find_conf)
    take_lock
    journal=$conf.clamproxy
    directory=$(mktemp -d)
    trap 'trap "" HUP INT TERM; rm -rf "$directory"; settle' EXIT
    trap 'exit 130' HUP INT TERM
    if [ -d "$journal" ]; then
        say "an earlier run was interrupted"
        settle
    fi

    own_lines >"$directory/lines"
    give_credentials
    compose >"$directory/conf"
    certificates >"$directory/certificates"
    if cmp -s "$conf" "$directory/conf" && ! is_trust_missing; then
        say "$conf already says so; nothing was changed"
        return 0
    fi
    reach_gateway
    update
    settle
    say "freshclam works with the gateway"
}

# Lines of the gateway, and the certificates of its authority, if freshclam has to trust it.

own_lines() {
    cat <<'CLAMPROXY-LINES'
@LINES@
CLAMPROXY-LINES
}

certificates() {
    cat <<'CLAMPROXY-CERTIFICATES'
@CERTIFICATES@
CLAMPROXY-CERTIFICATES
}

# The configuration

find_conf() {
    if [ -n "${CLAMPROXY_CONF:-}" ]; then
        [ -f "$CLAMPROXY_CONF" ] || die "$CLAMPROXY_CONF: no such file"
        real_path "$CLAMPROXY_CONF"
        return
    fi
    # Debian, Ubuntu, Alpine; RHEL, Fedora; FreeBSD, and ClamAV's own packages.
    for one in /etc/clamav/freshclam.conf /etc/freshclam.conf /usr/local/etc/freshclam.conf; do
        if [ -f "$root$one" ]; then
            real_path "$root$one"
            return
        fi
    done
    die "found no freshclam.conf; name it with CLAMPROXY_CONF"
}

real_path() { # a symbolic link stays one
    readlink -f "$1" 2>/dev/null || echo "$1"
}

# The former file without what the gateway's lines replace, and then these lines.
compose() {
    awk '
        FNR == NR { given[$0] = 1; next }
        /^# Begin clamproxy$/ { is_begun = 1; before = count; next }
        /^# End clamproxy$/ { if (is_begun) count = before; is_begun = 0; next }
        !($0 in given) && $1 !~ /^(@REPLACED@)$/ { kept[++count] = $0 }
        END {
            while (count && kept[count] ~ /^[ \t]*$/) count--
            for (number = 1; number <= count; number++) print kept[number]
        }
    ' "$directory/lines" "$conf"
    echo "# Begin clamproxy"
    cat "$directory/lines"
    echo "# End clamproxy"
}

# Put name and password where the lines have USERNAME and PASSWORD. They never appear on a command line.
give_credentials() {
    grep -Eq '^HTTPProxyPassword PASSWORD$|:PASSWORD@' "$directory/lines" || return 0
    user=${CLAMPROXY_USER:-}
    password=${CLAMPROXY_PASSWORD:-}
    is_coded=false # in a URL, as the former file has it
    former_credentials
    if [ -z "$user" ] && grep -Eq '^HTTPProxyUsername USERNAME$|//USERNAME:' "$directory/lines"; then
        user=$(ask "User on the gateway: ") || die "set CLAMPROXY_USER and CLAMPROXY_PASSWORD"
    fi
    if [ -z "$password" ]; then
        password=$(ask "Password on the gateway: " hidden) || die "set CLAMPROXY_PASSWORD"
    fi
    case $user$password in
    *[[:cntrl:]]*) die "name and password must not contain control characters" ;;
    esac
    if ! $is_coded && grep -q ':PASSWORD@' "$directory/lines"; then
        user=$(encoded "$user")
        password=$(encoded "$password")
    fi
    user=$user password=$password awk '
        function put(before, mark, after, value,   at) {
            at = index($0, before mark after)
            if (at) $0 = substr($0, 1, at - 1) before value substr($0, at + length(before mark))
        }
        {
            put("//", "USERNAME", ":", ENVIRON["user"])
            put(":", "PASSWORD", "@", ENVIRON["password"])
            put("HTTPProxyUsername ", "USERNAME", "", ENVIRON["user"])
            put("HTTPProxyPassword ", "PASSWORD", "", ENVIRON["password"])
            print
        }
    ' "$directory/lines" >"$directory/filled"
    mv "$directory/filled" "$directory/lines"
}

former() { # the value of an option in the present file
    awk -v name="$1" '$1 == name { sub(/^[ \t]*[^ \t]+[ \t]+/, ""); value = $0 } END { print value }' "$conf"
}

# Those with which the present file already logs in to this gateway. Any others are not for it.
former_credentials() {
    if [ "$(former HTTPProxyServer):$(former HTTPProxyPort)" = "@GATEWAY@" ]; then
        user=${user:-$(former HTTPProxyUsername)}
        [ "$user" != "$(former HTTPProxyUsername)" ] || password=${password:-$(former HTTPProxyPassword)}
    elif [ -z "$user$password" ] && grep -q ':PASSWORD@' "$directory/lines"; then
        credentials=$(awk -v place='@@GATEWAY@' '
            $1 ~ /^(DatabaseMirror|PrivateMirror)$/ && sub(/^[a-z]+:\/\//, "", $2) {
                start = length($2) - length(place)
                if (start > 0 && substr($2, start + 1) == place) { print substr($2, 1, start); exit }
            }
        ' "$conf")
        [ -n "$credentials" ] || return 0
        user=${credentials%%:*}
        password=${credentials#*:}
        is_coded=true
    fi
}

ask() { # the standard input is this script, if it comes through a pipe
    ( : </dev/tty ) 2>/dev/null || return 1
    printf '%s' "$1" >/dev/tty
    if [ -n "${2:-}" ]; then
        terminal=$(stty -g </dev/tty)
        trap 'stty "$terminal" </dev/tty; echo >/dev/tty' EXIT # of this subshell
        trap 'exit 130' HUP INT TERM
        stty -echo </dev/tty
    fi
    read -r answer </dev/tty || answer=
    [ -n "$answer" ] && printf '%s\n' "$answer"
}

encoded() { # percent-encoded
    printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g'
}

copy() { # copy FILE NEW, with owner, mode and SELinux's label
    cp -p "$1" "$2"
    if command -v chcon >/dev/null; then chcon --reference="$1" "$2" 2>/dev/null || :; fi
}

replace_conf() {
    copy "$conf" "$journal/new"
    cat "$directory/conf" >"$journal/new"
    # With a password in it, freshclam insists on that.
    if grep -Eq '^HTTPProxyPassword|^[A-Za-z]*Mirror .*@' "$journal/new"; then chmod 600 "$journal/new"; fi
    copy "$conf" "$journal/copy"
    mv -f "$journal/copy" "$journal/former"
    mv -f "$journal/new" "$conf"
}

# The certificates: where AppArmor (Debian) or SELinux (RHEL) lets freshclam read them

trust_file() {
    if [ -d "$root/etc/pki/tls" ]; then
        echo "$root/etc/pki/clamproxy/clamproxy.pem"
    else
        echo "$root/usr/local/share/ca-certificates/clamproxy.pem"
    fi
}

needs_trust() {
    grep -q 'BEGIN CERTIFICATE' "$directory/certificates"
}

is_trust_missing() { # others may follow the gateway's in the file
    needs_trust || return 1
    [ -f "$(trust_file)" ] || return 0
    ! head -n $(($(wc -l <"$directory/certificates"))) "$(trust_file)" | cmp -s "$directory/certificates" -
}

# A file that only this run of freshclam uses: if that fails, the former configuration's trust is as it was.
try_trust() {
    needs_trust || return 0
    CURL_CA_BUNDLE=$(trust_file)
    if is_trust_missing; then
        mkdir -p "${CURL_CA_BUNDLE%/*}"
        CURL_CA_BUNDLE=$CURL_CA_BUNDLE.new
        cat "$directory/certificates" >"$CURL_CA_BUNDLE"
    fi
    export CURL_CA_BUNDLE
}

install_trust() { # the file comes last, as its presence says that all is done
    is_trust_missing || return 0
    file=$(trust_file)
    if has_systemd; then
        for unit in clamav-freshclam clamav-freshclam-once; do
            mkdir -p "$root/etc/systemd/system/$unit.service.d"
            printf '[Service]\nEnvironment=CURL_CA_BUNDLE=%s\n' "${file#"$root"}" \
                >"$root/etc/systemd/system/$unit.service.d/clamproxy.conf"
        done
        systemctl daemon-reload
    elif [ -d "$root/etc/conf.d" ]; then # OpenRC
        variable="export CURL_CA_BUNDLE=${file#"$root"}"
        touch "$root/etc/conf.d/freshclam"
        grep -qxF "$variable" "$root/etc/conf.d/freshclam" || echo "$variable" >>"$root/etc/conf.d/freshclam"
    fi
    mv -f "$CURL_CA_BUNDLE" "$file"
}

# The daemon

has_systemd() {
    [ -d "$root/run/systemd/system" ]
}

daemon() { # daemon is-active|stop|start
    if has_systemd; then
        systemctl --quiet "$1" clamav-freshclam.service
    elif command -v rc-service >/dev/null; then
        case $1 in
        is-active) rc-service --quiet freshclam status ;;
        *) rc-service --quiet freshclam "$1" ;;
        esac
    elif [ -x "$root/usr/local/etc/rc.d/clamav_freshclam" ] || [ -x "$root/usr/local/etc/rc.d/clamav-freshclam" ]; then
        service=$(basename "$root"/usr/local/etc/rc.d/clamav?freshclam)
        case $1 in
        is-active) service "$service" status >/dev/null ;;
        *) service "$service" "$1" >/dev/null ;;
        esac
    elif [ "$1" = is-active ]; then
        return 1
    fi
}

reach_gateway() {
    url=@URL@/livez
    if command -v curl >/dev/null; then
        set -- curl -fsS -m 20 -o /dev/null "$url"
    elif command -v wget >/dev/null; then
        set -- wget -q -T 20 -O /dev/null "$url"
    else
        say "neither curl nor wget is installed, so only freshclam will show whether the gateway can be reached"
        return 0
    fi
    (
        unset http_proxy HTTP_PROXY all_proxy ALL_PROXY
        "$@"
    ) || die "the gateway does not answer at $url; nothing was changed"
}

# Run freshclam once with the new configuration, while its daemon is stopped. Until that has succeeded, the
# journal holds the former file; `settle` puts it back, whatever ends this run, or the next run does.
update() {
    mkdir -m 700 "$journal"
    if daemon is-active 2>/dev/null; then
        : >"$journal/active"
        daemon stop || die "freshclam's daemon could not be stopped; nothing was changed"
    fi
    cmp -s "$conf" "$directory/conf" || replace_conf
    $keep_cooldown || end_cooldown
    try_trust
    status=0
    freshclam --config-file="$conf" --stdout >"$directory/log" 2>&1 9<&- || status=$?
    if grep -q 'still on cool-down' "$directory/log"; then
        say "freshclam is on a cool-down, so it has not asked the gateway yet"
    fi
    if [ "$status" != 0 ]; then
        tail -n 15 "$directory/log" | sed 's|//[^/@]*@|//***@|g' >&2
        die "freshclam failed with exit code $status"
    fi
    if [ -f "$journal/former" ]; then
        backup=$conf.$(date -u +%Y%m%dT%H%M%SZ)-$$.bak
        mv -f "$journal/former" "$backup"
        say "$conf was changed; the former file is $backup"
    fi
    install_trust
}

# Put back what has not succeeded, and start the daemon if it was stopped.
settle() {
    [ -d "$journal" ] || return 0
    if [ -f "$journal/former" ]; then
        mv -f "$journal/former" "$conf"
        say "the former $conf is in place again"
    fi
    rm -f "$(trust_file).new"
    if [ -e "$journal/active" ]; then daemon start 9<&-; fi
    rm -rf "$journal"
}

# One run at a time. The kernel ends the lock with this process; FreeBSD has no flock, and does without.
take_lock() {
    command -v flock >/dev/null || return 0
    exec 9<"$(dirname "$conf")"
    flock -n 9 || die "another run is under way"
}

# A refusal by the CDN stops freshclam for hours, also towards the gateway. Its end is a time in
# freshclam.dat, which also holds the machine's UUID, and that should stay.
end_cooldown() {
    databases=$(former DatabaseDirectory)
    if [ -z "$databases" ]; then
        databases=$root/var/lib/clamav
        [ -d "$databases" ] || databases=$root/var/db/clamav # FreeBSD
    fi
    dat=$databases/freshclam.dat
    [ -f "$dat" ] || return 0
    until=$(od -An -tu4 -j61 -N4 "$dat" 2>/dev/null | tr -d ' ') || until=
    case $until in
    '' | *[!0-9]*) return 0 ;;
    esac
    if [ "$until" -gt "$(date +%s)" ]; then
        dd if=/dev/zero of="$dat" bs=1 seek=61 count=8 conv=notrunc 2>/dev/null
        say "a cool-down was ended"
    fi
}

say() {
    echo "clamproxy: $*"
}

die() {
    echo "clamproxy: $*" >&2
    exit 1
}

main "$@"
