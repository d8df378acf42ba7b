# Functions for the services of all users: `systemctl --user` in the manager of each user who is logged in, or
# whose services run from boot. They never fail: a user's manager that does not answer must not leave the
# package half installed.

# A user or an administrator may have a unit of the same name for a program elsewhere. It stays as it is.
packaged=/usr/lib/systemd/user/ai-agent.service

user_systemctl() {
    uid=$1
    shift
    timeout 40 systemctl --quiet --user --machine="$uid@" "$@" </dev/null
}

runs_packaged_agent() {
    [ "$(user_systemctl "$1" show --property=FragmentPath --value ai-agent.service)" = "$packaged" ]
}

reload_manager() {
    user_systemctl "$1" daemon-reload
}

# Does not wait: the new agent may have to check its store first.
restart_agent() {
    if runs_packaged_agent "$1"; then user_systemctl "$1" --no-block try-restart ai-agent.service; fi
}

stop_agent() {
    if runs_packaged_agent "$1"; then user_systemctl "$1" stop ai-agent.service; fi
}

start_enabled_agent() {
    if runs_packaged_agent "$1" && user_systemctl "$1" is-enabled ai-agent.service >/dev/null; then
        user_systemctl "$1" --no-block start ai-agent.service
    fi
}

# Calls a function with the id of each user, at the same time.
for_each_user() {
    if [ -n "${DPKG_ROOT-}" ] || [ ! -d /run/systemd/system ]; then return 0; fi
    users=$(systemctl list-units --plain --no-legend --state=active 'user@*.service' |
        sed -n 's/^user@\([0-9]*\)[.]service .*/\1/p') || return 0
    for user in $users; do
        "$1" "$user" || echo "ai-agent: $1 failed for the user with the id $user" >&2 &
    done
    wait
}

# Reverts `systemctl --global enable`, unless that was for an administrator's own unit.
disable_for_all() {
    link=${DPKG_ROOT-}/etc/systemd/user/default.target.wants/ai-agent.service
    case $(readlink "$link" || true) in
    "$packaged" | /lib/systemd/user/ai-agent.service) rm -f "$link" ;;
    esac
}
