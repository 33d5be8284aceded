# SPDX-License-Identifier: LGPL-2.1-only
# shellcheck shell=bash
#
# Functions of block-xenblk: who else uses an image, by dev:inode. The image lock
# is the last word among tapdisks and all who lock; here are those who don't, and
# the names of guests. Sourced after xenblk-common.sh, whose variables it shares.
# shellcheck disable=SC2004,SC2154

# guest_of NODE: the guest and vdev of a backend node, in words.
guest_of() {
	local domid name vdev

	domid=${1%/*} domid=${domid##*/}
	if name=$(xenstore-read "/local/domain/$domid/name" 2>/dev/null); then
		vdev=$(xenstore-read "$1/dev" 2>/dev/null) || vdev=${1##*/}
		echo "guest $name ($vdev)"
	else
		echo "the disk $1"
	fi
}

# What is called DEV in the lists of users, in words.
user_name() {
	local node

	case $1 in
	"$backends"/*) guest_of "$1" ;;
	*/block/loop*)
		read_store "$backends/vbd"
		for node in "${!user_node[@]}"; do
			[ "${user_node[$node]}" = "/dev/${1##*/}" ] || continue
			echo "/dev/${1##*/} of $(guest_of "$node")"
			return
		done
		echo "/dev/${1##*/}"
		;;
	*) echo "$1" ;;
	esac
}

# refuse WHO WHY
refuse() {
	ebusy "${params//\\/\\\\}: in use by $1; ${2//\\/\\\\}"
}

# refuse_held TEXT: the process holder has a lock on the image or on a parent.
refuse_held() {
	local node now

	read_store "$backends/vbd"
	for node in "${!user_pid[@]}"; do
		heir now "${user_pid[$node]}"
		[ "$now" != "$holder" ] || refuse "$(guest_of "$node")" "$1"
	done
	ebusy "${1//\\/\\\\}"
}

# Completes the list of those who use files and take no image lock: QEMU's disks
# (libxl turns locking off), loop devices, and for a block device mounts and
# other backends. Other xenblk disks are left to the lock, which knows more.
find_users() {
	local dev line rest sys=${XENBLK_SYSFS:-/sys}
	local stores=()

	user_path=() user_mode=() user_script=()
	# First what is there, since ours is in it: a path that isn't ends the list.
	[ ! -b "${params#*:}" ] || stores=("$backends/vbd")
	read_store "${stores[@]}" "$backends/qdisk"
	for dev in "${!user_path[@]}"; do
		[[ ${user_script[$dev]-} != */block-xenblk ]] || unset "user_path[$dev]"
		[[ ${user_path[$dev]-/} == /* ]] || user_path[$dev]=${user_path[$dev]#*:}
	done
	for line in "$sys"/block/loop*/loop/backing_file; do
		dev=${line%/loop/backing_file}
		# A loop device may go away meanwhile.
		{ IFS= read -r "user_path[$dev]" <"$line"; } 2>/dev/null || continue
		IFS= read -r rest <"$dev/ro" || rest=0
		user_mode[$dev]=w
		[ "$rest" != 1 ] || user_mode[$dev]=r
	done
	[ -b "${params#*:}" ] || return 0
	while read -r dev line _ rest; do
		[[ $dev == /dev/* ]] || continue
		line="the mount $line"
		user_path[$line]=$dev user_mode[$line]=w
		[[ $rest != ro[,\ ]* ]] || user_mode[$line]=r
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
		refuse "$(user_name "$dev")" "end that use first"
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
