# SPDX-License-Identifier: LGPL-2.1-only
# shellcheck shell=bash
#
# Functions of block-xenblk, sourced after Xen's block-common.sh. They share
# these variables with it.
# shellcheck disable=SC2034

params='' mode='' state=none pid='' minor='' error='' undo='' locked='' lock_fd=''
backends=${XENBUS_BASE_PATH:-backend}
declare -A user_path user_mode user_name user_script

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

# One lock for each vbd: add and remove of one device exclude each other, and a
# file server that hangs holds up nobody else's disks. Who may open an image is
# the image lock's to decide. The protocol is claim_lock's, with fewer forks.
lock_vbd() {
	lock=$LOCK_BASEDIR/xenblk-${XENBUS_PATH//\//-}
	[ -d "$LOCK_BASEDIR" ] || mkdir -p "$LOCK_BASEDIR"
	while :; do
		exec {lock_fd}<>"$lock"
		flock -x "$lock_fd"
		if [ "/proc/self/fd/$lock_fd" -ef "$lock" ]; then
			locked=yes
			return
		fi
		exec {lock_fd}>&-
	done
}

# Only within $(...): becomes tap-ctl, without the descriptor of the lock, which
# a tapdisk that it starts would hold for as long as it lives.
tapctl() {
	exec {lock_fd}>&-
	exec tap-ctl "$@" </dev/null
}

# Runs at exit. A command that fails inside a function ends the script past
# Xen's ERR trap, so the reason may not have been written yet.
finish() {
	local status=$?

	set +e
	trap - ERR
	[ -z "$undo" ] || "$undo"
	[ -z "$locked" ] || rm -f "$lock"
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
			params) user_path[$dev]=$value user_name[$dev]="the disk $dev" ;;
			mode) user_mode[$dev]=$value ;;
			script) user_script[$dev]=$value ;;
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

	number=$(device_major_minor "$1") || fail "$params: there is no $1"
	xenstore_write "$XENBUS_PATH/tapdisk-pid" "$pid" "$XENBUS_PATH/tapdisk-minor" "$minor" \
		"$XENBUS_PATH/physical-device-path" "$1" "$XENBUS_PATH/physical-device" "$number" \
		"$XENBUS_PATH/hotplug-status" connected
}

is_serving() {
	[[ $(tapctl list -p "$pid" -m "$minor") == *pid=$pid\ *minor=$minor\ * ]]
}

# Ends the service of pid and minor. 0 if nothing of it is left; 1, with the
# reason in error, if it may be tried again.
destroy() {
	local list

	# Closing writes out what is pending. libxl leaves us 40 s for all.
	error=$(tapctl destroy -p "$pid" -m "$minor" -t 25 2>&1) && return
	list=$(tapctl list -m "$minor") || return 1
	case $list in
	'') return 0 ;;
	*pid="$pid"\ *) return 1 ;;
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

# Completes the list of those who use files and take no image lock: QEMU's disks
# (libxl turns locking off), loop devices, and for a block device mounts and
# other backends. Other xenblk disks are left to the lock, which knows more.
find_users() {
	local dev line rest sys=${XENBLK_SYSFS:-/sys}

	[ ! -b "${params#*:}" ] || read_store "$backends/vbd"
	for dev in "${!user_path[@]}"; do
		[[ ${user_script[$dev]-} != */block-xenblk ]] || unset "user_path[$dev]"
		[[ ${user_path[$dev]-/} == /* ]] || user_path[$dev]=${user_path[$dev]#*:}
	done
	for line in "$sys"/block/loop*/loop/backing_file; do
		dev=${line%/loop/backing_file}
		# A loop device may go away meanwhile.
		{ IFS= read -r "user_path[$dev]" <"$line"; } 2>/dev/null || continue
		IFS= read -r rest <"$dev/ro" || rest=0
		user_mode[$dev]=w user_name[$dev]="/dev/${dev##*/}"
		[ "$rest" != 1 ] || user_mode[$dev]=r
	done
	[ -b "${params#*:}" ] || return 0
	while read -r dev line _ rest; do
		[[ $dev == /dev/* ]] || continue
		user_path[$dev]=$dev user_name[$dev]="the mount $line" user_mode[$dev]=w
		[[ $rest != ro[,\ ]* ]] || user_mode[$dev]=r
	done </proc/self/mounts
}

same_file() {
	[ "$1" -ef "$2" ] && return
	[ -b "$1" ] && [ -b "$2" ] && [ "$(device_major_minor "$1")" = "$(device_major_minor "$2")" ]
}

# check_sharing MODE FILE: fails if one of the users has FILE and the user or
# MODE writes.
check_sharing() {
	local dev

	for dev in "${!user_path[@]}"; do
		[[ $1${user_mode[$dev]-w} == *w* ]] || continue
		same_file "$2" "${user_path[$dev]}" || continue
		ebusy "${params//\\/\\\\}: in use by ${user_name[$dev]}; end that use first"
	done
}

# The same for the files that tapdisk has opened: the image and its parents.
check_chain() {
	local fd info

	for fd in "/proc/$pid/fd/"*; do
		[ -f "$fd" ] || [ -b "$fd" ] || continue
		IFS= read -rd '' info <"/proc/$pid/fdinfo/${fd##*/}" || true
		if [[ $info =~ flags:[[:space:]]*[0-7]*[12][[:space:]] ]]; then
			check_sharing w "$fd"
		else
			check_sharing r "$fd"
		fi
	done
}
