/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * For LD_PRELOAD: lets QEMU start as on Xen, up to where a frontend connects, and with files for block devices.
 *
 * Xen's handles are of no use: nothing maps a grant or binds an event channel before there is a frontend. A regular
 * file with the sticky bit is a block device, read-only if its mode has no write permission.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int handle;

#define OPENS(name)      \
    void *name##_open(void) \
    {                    \
        return &handle;  \
    }                    \
    int name##_close(void *old) \
    {                    \
        (void)old;       \
        return 0;        \
    }

OPENS(xc_interface)
OPENS(xendevicemodel)
OPENS(xenevtchn)
OPENS(xenforeignmemory)
OPENS(xengnttab)

int xengnttab_grant_copy(void *old, unsigned int count, void *segments)
{
    (void)old;
    (void)segments;
    return count ? -1 : 0;
}

static int found(int result, struct stat *buf)
{
    if (!result && S_ISREG(buf->st_mode) && (buf->st_mode & S_ISVTX))
        buf->st_mode = (buf->st_mode & ~S_IFMT) | S_IFBLK;
    return result;
}

int stat(const char *path, struct stat *buf)
{
    return found(fstatat(AT_FDCWD, path, buf, 0), buf);
}

int fstat(int fd, struct stat *buf)
{
    return found(fstatat(fd, "", buf, AT_EMPTY_PATH), buf);
}

int stat64(const char *path, struct stat64 *buf)
{
    return stat(path, (struct stat *)buf);
}

int fstat64(int fd, struct stat64 *buf)
{
    return fstat(fd, (struct stat *)buf);
}

/* QEMU asks this one of a block device that is to be written. */
int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;
    struct stat buf;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request == BLKROGET && !fstat(fd, &buf) && (buf.st_mode & S_ISVTX)) {
        *(int *)argument = !(buf.st_mode & 0222);
        return 0;
    }
    return (int)syscall(SYS_ioctl, fd, request, argument);
}
