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
    conf=$(find_conf)
    directory=$(mktemp -d)
    trap 'rm -rf "$directory"; [ -z "${new:-}" ] || rm -f "$new"' EXIT
    trap 'exit 130' HUP INT TERM
    umask 077

    own_lines >"$directory/lines"
    give_credentials
    compose >"$directory/conf"
    certificates >"$directory/certificates"
    if cmp -s "$conf" "$directory/conf" && ! is_trust_missing; then
        say "$conf already says so; nothing was changed"
        return 0
    fi
    reach_gateway
    install_trust
    backup=
    cmp -s "$conf" "$directory/conf" || replace_conf
    update
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
        /^# Begin clamproxy/ { ours = 1 }
        !ours && !($0 in given) && $1 !~ /^(@REPLACED@)$/ { kept[++count] = $0 }
        /^# End clamproxy/ { ours = 0 }
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
    grep -v '^#' "$directory/lines" | grep -q PASSWORD || return 0
    user=${CLAMPROXY_USER:-$(former HTTPProxyUsername)}
    password=${CLAMPROXY_PASSWORD:-$(former HTTPProxyPassword)}
    is_coded=true # in a URL, as the former file has it
    if grep -q '^[A-Za-z]*Mirror .*PASSWORD' "$directory/lines"; then
        credentials=$(former_credentials "$(sed -n 's/^[A-Za-z]*Mirror .*@//p' "$directory/lines" | head -n 1)")
        if [ -z "${CLAMPROXY_PASSWORD:-}" ] && [ -n "$credentials" ]; then
            user=${credentials%%:*}
            password=${credentials#*:}
        else
            is_coded=false
        fi
    fi
    needs_name=false
    grep -v '^#' "$directory/lines" | grep -q USERNAME && needs_name=true
    if $needs_name && [ -z "$user" ]; then
        user=$(ask "User on the gateway: ") || die "set CLAMPROXY_USER and CLAMPROXY_PASSWORD"
    fi
    if [ -z "$password" ]; then
        password=$(ask "Password on the gateway: " hidden) || die "set CLAMPROXY_PASSWORD"
    fi
    case $user$password in
    *[[:cntrl:]]*) die "name and password must not contain control characters" ;;
    esac
    if ! $is_coded; then
        user=$(encoded "$user")
        password=$(encoded "$password")
    fi
    user=$user password=$password awk '
        function put(text, mark, value,   at) {
            at = index(text, mark)
            return at ? substr(text, 1, at - 1) value substr(text, at + length(mark)) : text
        }
        BEGIN { user = ENVIRON["user"]; password = ENVIRON["password"] }
        /^#/ { print; next }
        { print put(put($0, "PASSWORD", password), "USERNAME", user) }
    ' "$directory/lines" >"$directory/filled"
    mv "$directory/filled" "$directory/lines"
}

former() { # the value of an option in the present file
    awk -v name="$1" '$1 == name { sub(/^[ \t]*[^ \t]+[ \t]+/, ""); value = $0 } END { print value }' "$conf"
}

former_credentials() { # of the mirror in the present file that is at this place
    grep -E '^(DatabaseMirror|PrivateMirror) ' "$conf" | grep -F "@$1" | head -n 1 | sed 's|^.*://||; s|@[^@]*$||'
}

ask() { # the standard input is this script, if it comes through a pipe
    ( : </dev/tty ) 2>/dev/null || return 1
    printf '%s' "$1" >/dev/tty
    if [ -n "${2:-}" ]; then stty -echo </dev/tty; fi
    read -r answer </dev/tty || answer=
    if [ -n "${2:-}" ]; then stty echo </dev/tty && echo >/dev/tty; fi
    [ -n "$answer" ] && printf '%s\n' "$answer"
}

encoded() { # percent-encoded
    printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g'
}

replace_conf() {
    backup=$conf.$(date -u +%Y%m%dT%H%M%SZ).bak
    new=$(mktemp "$conf.XXXXXX")
    cp -p "$conf" "$new" # owner and mode
    if command -v chcon >/dev/null; then chcon --reference="$conf" "$new" 2>/dev/null || :; fi
    cat "$directory/conf" >"$new"
    # With a password in it, freshclam insists on that.
    if grep -q '^HTTPProxyPassword\|^[A-Za-z]*Mirror .*@' "$new"; then chmod 600 "$new"; fi
    cp -p "$conf" "$backup"
    mv "$new" "$conf"
    new=
    say "$conf was changed; the former file is $backup"
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

is_trust_missing() {
    needs_trust && ! cmp -s "$directory/certificates" "$(trust_file)"
}

install_trust() {
    needs_trust || return 0
    file=$(trust_file)
    umask 022
    mkdir -p "${file%/*}"
    cat "$directory/certificates" >"$file"
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
    umask 077
    export CURL_CA_BUNDLE="$file"
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

# Run freshclam once while its daemon is stopped. If that fails, everything is as before.
update() {
    was_active=false
    if daemon is-active 2>/dev/null; then
        was_active=true
        daemon stop
    fi
    $keep_cooldown || end_cooldown
    status=0
    freshclam --config-file="$conf" --stdout >"$directory/log" 2>&1 || status=$?
    if grep -q 'still on cool-down' "$directory/log"; then
        say "freshclam is on a cool-down, so it has not asked the gateway yet"
    fi
    if [ "$status" != 0 ]; then
        tail -n 15 "$directory/log" | sed 's|//[^/@]*@|//***@|g' >&2
        if [ -n "$backup" ]; then
            mv "$backup" "$conf"
            say "the former $conf is in place again"
        fi
    fi
    if $was_active; then daemon start; fi
    [ "$status" = 0 ] || die "freshclam failed with exit code $status"
    say "freshclam works with the gateway"
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
