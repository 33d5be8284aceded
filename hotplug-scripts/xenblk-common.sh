# SPDX-License-Identifier: LGPL-2.1-only
# shellcheck shell=bash
#
# Functions of block-xenblk, sourced after Xen's block-common.sh. They share
# these variables with it.
# shellcheck disable=SC2034

params='' mode='' state='' pid='' minor='' error='' undo='' locked=''

# Fails with text in hotplug-error, where libxl finds it. xenstore-write takes a
# backslash for an escape.
fail() {
	fatal "${1//\\/\\\\}"
}

# Only within $(...): becomes tap-ctl, without the descriptor of the lock, which
# a tapdisk that it starts would hold for as long as it lives.
tapctl() {
	eval "exec ${_lockfd:-200}>&-"
	exec tap-ctl "$@" </dev/null
}

# One lock for each vbd: add and remove of one device exclude each other, and a
# file server that hangs holds up nobody else's disks. Who may open an image is
# the image lock's to decide.
lock_vbd() {
	lock=xenblk-${XENBUS_PATH//\//-}
	claim_lock "$lock"
	locked=yes
}

# Runs at exit. A command that fails inside a function ends the script past
# Xen's ERR trap, so the reason may not have been written yet.
finish() {
	local status=$?

	set +e
	trap - ERR
	[ -z "$undo" ] || "$undo"
	[ -z "$locked" ] || release_lock "$lock"
	[ "$status" -ne 0 ] || return
	case $(xenstore_read_default "$XENBUS_PATH/hotplug-status" none) in
	error | busy) ;;
	*) fatal "${0##*/} failed; see /var/log/xen/xen-hotplug.log" ;;
	esac
}

# A line of xenstore-ls -f, in which unusual characters are escaped.
split_line() {
	key=${1%% = \"*}
	value=${1#* = \"}
	printf -v value %b "${value%\"}"
}

# The backend node, in one call: forks are what this script's time is made of.
read_vbd() {
	local line key value

	params='' mode='' state=none pid='' minor=''
	while IFS= read -r line; do
		split_line "$line"
		case ${key#"$XENBUS_PATH/"} in
		params) params=$value ;;
		mode) mode=$value ;;
		state) state=$value ;;
		tapdisk-pid) pid=$value ;;
		tapdisk-minor) minor=$value ;;
		esac
	done < <(xenstore-ls -f "$XENBUS_PATH" 2>/dev/null)
}

# What Xen's write_dev does, and our keys, in two writes instead of four.
publish() {
	local number

	number=$(device_major_minor "$1") || fail "$params: there is no $1"
	xenstore_write "$XENBUS_PATH/tapdisk-pid" "$pid" "$XENBUS_PATH/tapdisk-minor" "$minor" \
		"$XENBUS_PATH/physical-device-path" "$1" "$XENBUS_PATH/physical-device" "$number"
	success
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

# Fills user_path, user_mode and user_name with what uses files and takes no
# image lock: QEMU's disks (libxl turns locking off), loop devices, and for a
# block device mounts and other backends. Other xenblk disks are left to the
# lock, which knows more.
declare -A user_path user_mode user_name
find_users() {
	local key value dev line rest sys=${XENBLK_SYSFS:-/sys} bases=(qdisk)
	local -A script=()

	user_path=() user_mode=() user_name=()
	[ ! -b "${params#*:}" ] || bases+=(vbd)
	while IFS= read -r line; do
		split_line "$line"
		dev=${key%/*}
		case $key in
		*/params) user_path[$dev]=$value ;;
		*/mode) user_mode[$dev]=$value ;;
		*/script) script[$dev]=$value ;;
		esac
	done < <(for dev in "${bases[@]}"; do
		xenstore-ls -f "${XENBUS_BASE_PATH:-backend}/$dev" 2>/dev/null
	done)
	for dev in "${!user_path[@]}"; do
		if [ "$dev" = "$XENBUS_PATH" ] || [[ ${script[$dev]-} == */block-xenblk ]]; then
			unset "user_path[$dev]"
			continue
		fi
		[[ ${user_path[$dev]%%:*} == */* ]] || user_path[$dev]=${user_path[$dev]#*:}
		user_name[$dev]="the disk $dev"
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
	while read -r dev key _ rest; do
		[[ $dev == /dev/* ]] || continue
		user_path[$dev]=$dev user_name[$dev]="the mount $key" user_mode[$dev]=w
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
