# SPDX-License-Identifier: LGPL-2.1-only
# shellcheck shell=bash
#
# Functions of block-xenblk, sourced after Xen's block-common.sh. They share
# these variables with it.
# shellcheck disable=SC2004,SC2034

params='' mode='' state=none pid='' minor='' error='' undo='' device='' holder=''
locks=() lock_fds=()
backends=${XENBUS_BASE_PATH:-backend}
declare -A user_path user_mode user_script user_node user_pid

# Fails with text in hotplug-error, where libxl finds it. xenstore-write takes a
# backslash for an escape.
fail() {
	fatal "${1//\\/\\\\}"
}

# Xen's scripts start logger for every line. stderr is xen-hotplug.log, and a
# fork less: the time of this script is made of forks, and libxl kills it after
# 40 s, which is little on a dom0 that is very busy or emulated.
log() {
	local level=$1

	shift
	case $level in
	debug) echo "${0##*/}: $*" >&2 ;;
	*) logger -p "daemon.$level" -- "${0##*/}: $*" || echo "${0##*/}: $*" >&2 ;;
	esac
}

# lock_file NAME: Xen's claim_lock with fewer forks, its files and its protocol.
lock_file() {
	local fd lock=$LOCK_BASEDIR/$1

	[ -d "$LOCK_BASEDIR" ] || mkdir -p "$LOCK_BASEDIR"
	while :; do
		exec {fd}<>"$lock"
		flock -x "$fd"
		if [ "/proc/self/fd/$fd" -ef "$lock" ]; then
			locks+=("$lock") lock_fds+=("$fd")
			return
		fi
		exec {fd}>&-
	done
}

# Only within $(...): becomes tap-ctl, without the descriptors of the locks, which
# what it starts would hold for as long as it lives.
tapctl() {
	local fd

	for fd in "${lock_fds[@]}"; do
		exec {fd}>&-
	done
	exec tap-ctl "$@" </dev/null
}

# create [-R]: a tapdisk that has the image open: pid, minor, device.
create() {
	local line out text='' status=0

	out=$(tapctl create -a "$params" --owner=$$ --wait="$OPEN_SECONDS" "$@" 2>&1) || status=$?
	while IFS= read -r line; do
		case $line in
		/*/tapdev*) device=$line ;;
		pid=*) [[ $line =~ ^pid=([0-9]+)\ minor=([0-9]+)$ ]] && pid=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]} ;;
		holder=*) holder=${line#holder=} ;;
		*) text+=${text:+; }${line#tap-ctl: } ;;
		esac
	done <<<"$out"
	if [ "$status" -eq 0 ]; then
		[ -z "$pid" ] || [ -z "$device" ] || return 0
		fail "$params: tap-ctl create printed no device; install the tap-ctl of this release"
	fi
	[ -z "$holder" ] || refuse_held "$text"
	fail "$text"
}

# The disk is the guest's now, and outlives this script. Its name is what `xenblk gc` goes by.
keep() {
	error=$(tapctl keep -p "$pid" -m "$minor" --for="$XENBUS_PATH" 2>&1) || fail "$params: ${error#tap-ctl: }"
}

# Runs at exit. A command that fails inside a function ends the script past
# Xen's ERR trap, so the reason may not have been written yet.
finish() {
	local status=$?

	set +e
	trap - ERR
	[ -z "$undo" ] || "$undo"
	[ ${#locks[@]} -eq 0 ] || rm -f "${locks[@]}"
	[ "$status" -ne 0 ] || return
	case $(xenstore_read_default "$XENBUS_PATH/hotplug-status" none) in
	error | busy) ;;
	*) fatal "${0##*/} failed; see /var/log/xen/xen-hotplug.log" ;;
	esac
}

# Takes over the nodes below each PATH: our backend's keys, and who else uses
# files. A PATH that isn't there ends the list.
read_store() {
	local line key value dev

	while IFS= read -r line; do
		# unusual characters of the value are escaped
		key=${line%% = \"*} value=${line#* = \"}
		printf -v value %b "${value%\"}"
		dev=${key%/*} key=${key##*/}
		if [ "$dev" != "$XENBUS_PATH" ]; then
			case $key in
			params) user_path[$dev]=$value ;;
			mode) user_mode[$dev]=$value ;;
			script) user_script[$dev]=$value ;;
			node) user_node[$dev]=$value ;;
			tapdisk-pid) user_pid[$dev]=$value ;;
			esac
			continue
		fi
		case $key in
		params) params=$value ;;
		mode) mode=$value ;;
		state) state=$value ;;
		tapdisk-pid) pid=$value ;;
		tapdisk-minor) minor=$value ;;
		esac
	done < <(exec xenstore-ls -f "$@" 2>/dev/null)
}

# What Xen's write_dev does, and our keys, in one transaction.
connect() {
	local number

	number=$(device_major_minor "$device") || fail "$params: there is no $device"
	xenstore_write "$XENBUS_PATH/tapdisk-pid" "$pid" "$XENBUS_PATH/tapdisk-minor" "$minor" \
		"$XENBUS_PATH/physical-device-path" "$device" "$XENBUS_PATH/physical-device" "$number" \
		"$XENBUS_PATH/hotplug-status" connected
}

# heir NAME PID: sets NAME to the tapdisk that has the disks of PID now: itself,
# or who has taken over. A fork for the latter alone.
heir() {
	local link=${XENBLK_CONTROL_DIR:-/run/blktap-control}/ctl$2 target=ctl$2

	[ ! -L "$link" ] || target=$(readlink "$link")
	printf -v "$1" %s "${target#ctl}"
}

is_serving() {
	heir pid "$pid"
	[[ $(tapctl list -p "$pid" -m "$minor") == *pid=$pid\ *minor=$minor\ * ]]
}

# Ends the service of pid and minor. 0 if nothing of it is left; 1, with the
# reason in error, if it may be tried again.
destroy() {
	local list

	# Closing writes out what is pending. libxl leaves us 40 s for all.
	error=$(tapctl destroy -p "$pid" -m "$minor" -t 25 2>&1) && return
	heir pid "$pid"
	list=$(tapctl list -m "$minor") || return 1
	case $list in
	'') return 0 ;;
	*pid="$pid"\ *) return 1 ;;
	# Ours died, and another was given its disk by hand: see tap-ctl(8).
	pid=[1-9]*" args=$params") pid=${list%% *} pid=${pid#pid=} && return 1 ;;
	# Another tapdisk has the minor: ours was ended by hand.
	*pid=[1-9]*) return 0 ;;
	# tapdisk died: the device is still there.
	*) error=$(tapctl free -m "$minor" 2>&1) ;;
	esac
}

# Undoes an add that failed after tap-ctl create.
destroy_now() {
	destroy || log err "$params: pid=$pid minor=$minor is left over: $error"
}
