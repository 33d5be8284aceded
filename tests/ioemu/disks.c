/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What ioemu opens for the disks of a guest: its xenstore.o with this file's own xenstore, block layer and stat().
 *
 * Standard input has one order a line:
 *   device PATH=NUMBER   PATH is a block device; those with one number are the same
 *   node PATH=VALUE      of xenstore
 *   start                read the guest's disks
 *   change PATH=VALUE    write a node; what watches it hears of it, and what waits for a timer need not
 * Standard output says what is opened and closed.
 *
 * Compiled in i386-dm of ioemu, with its headers and flags.
 */

#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "qemu-common.h"
#include "block_int.h"
#include "qemu-timer.h"
#include "sysemu.h"
#include "hw.h"
#include "qemu-xen.h"

#define MAX_NODES 64
#define GUEST 7

struct pair {
    char *name;
    char *value;
};

static struct pair nodes[MAX_NODES], watches[MAX_NODES], devices[MAX_NODES];
static struct pair event;
static QEMUTimerCB *timer_callback;
static int timer_is_set;

/* What xenstore.o uses of ioemu. */

FILE *logfile;
int domid, domid_backend, nb_drives, xen_pause_requested;
DriveInfo drives_table[MAX_DRIVES + 1];
QEMUClock *rt_clock;
BlockDriver bdrv_raw = {.format_name = "raw"};
BlockDriver bdrv_host_device = {.format_name = "host_device"};

static BlockDriver formats[] = {{.format_name = "raw"}, {.format_name = "qcow2"}, {.format_name = "vpc"}};

extern struct xs_handle *xsh;

BlockDriverState *bdrv_new(const char *device_name)
{
    (void)device_name;
    return calloc(1, sizeof(BlockDriverState));
}

BlockDriver *bdrv_find_format(const char *name)
{
    size_t i;

    for (i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (!strcmp(formats[i].format_name, name))
            return &formats[i];
    return NULL;
}

int bdrv_open2(BlockDriverState *bs, const char *filename, int flags, BlockDriver *drv)
{
    snprintf(bs->filename, sizeof(bs->filename), "%s", filename);
    printf("open %s %s %s\n", filename, drv ? drv->format_name : "PROBED", flags & BDRV_O_ACCESS ? "rw" : "ro");
    return 0;
}

void bdrv_close(BlockDriverState *bs)
{
    (void)bs;
    printf("close\n");
}

void bdrv_set_type_hint(BlockDriverState *bs, int type)
{
    bs->type = type;
}

int drive_get_index(BlockInterfaceType type, int bus, int unit)
{
    int i;

    for (i = 0; i < MAX_DRIVES; i++)
        if (drives_table[i].used && drives_table[i].type == type && drives_table[i].bus == bus &&
            drives_table[i].unit == unit)
            return i;
    return -1;
}

QEMUTimer *qemu_new_timer(QEMUClock *clock, QEMUTimerCB *cb, void *opaque)
{
    static char timer;

    (void)clock;
    (void)opaque;
    timer_callback = cb;
    return (QEMUTimer *)&timer;
}

void qemu_mod_timer(QEMUTimer *ts, int64_t expire_time)
{
    (void)ts;
    (void)expire_time;
    timer_is_set = 1;
}

int64_t qemu_get_clock(QEMUClock *clock)
{
    (void)clock;
    return 0;
}

static struct pair *find(struct pair *pairs, const char *name)
{
    int i;

    for (i = 0; i < MAX_NODES && pairs[i].name; i++)
        if (!strcmp(pairs[i].name, name))
            return &pairs[i];
    return i < MAX_NODES ? &pairs[i] : NULL;
}

static void set(struct pair *pairs, const char *name, const char *value)
{
    struct pair *pair = find(pairs, name);

    if (!pair)
        exit(2);
    pair->name = strdup(name);
    pair->value = strdup(value);
}

/* With ioemu's flags, the name that it is linked by is the one that xenstore.o wants. */
int stat(const char *path, struct stat *buf)
{
    struct pair *device = find(devices, path);

    memset(buf, 0, sizeof(*buf));
    buf->st_mode = S_IFREG;
    if (device && device->name) {
        buf->st_mode = S_IFBLK;
        buf->st_rdev = atoi(device->value);
    }
    return 0;
}

void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *len)
{
    struct pair *node = find(nodes, path);

    (void)h;
    (void)t;
    if (!node || !node->name)
        return NULL;
    *len = strlen(node->value);
    return strdup(node->value);
}

/* Of the directories that are listed, one is of use: the guest's disks, which all have one more level. */
char **xs_directory(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *num)
{
    static char *found[MAX_NODES];
    char **list;
    size_t size = strlen(path);
    unsigned int count = 0;
    int i;

    (void)h;
    (void)t;
    for (i = 0; i < MAX_NODES && nodes[i].name; i++) {
        const char *end;

        if (strncmp(nodes[i].name, path, size) || nodes[i].name[size] != '/')
            continue;
        end = strrchr(nodes[i].name, '/');
        if (end == nodes[i].name + size || strcmp(end, "/backend"))
            continue;
        found[count++] = strndup(nodes[i].name + size + 1, end - nodes[i].name - size - 1);
    }
    *num = count;
    list = malloc((count + 1) * sizeof(*list));
    memcpy(list, found, count * sizeof(*list));
    return list;
}

char *xs_get_domain_path(struct xs_handle *h, unsigned int domain)
{
    char *path;

    (void)h;
    return asprintf(&path, "/local/domain/%u", domain) < 0 ? NULL : path;
}

bool xs_watch(struct xs_handle *h, const char *path, const char *token)
{
    (void)h;
    set(watches, path, token);
    return true;
}

char **xs_read_watch(struct xs_handle *h, unsigned int *num)
{
    char **vector = malloc(2 * sizeof(*vector));

    (void)h;
    *num = 2;
    vector[XS_WATCH_PATH] = event.name;
    vector[XS_WATCH_TOKEN] = event.value;
    return vector;
}

static void fire(const char *path)
{
    struct pair *watch = find(watches, path);

    if (!watch || !watch->name || strncmp(watch->name, "/local/domain/0/backend/", 24))
        return;
    event = *watch;
    xenstore_process_event(NULL);
    if (timer_is_set)
        timer_callback(NULL);
    timer_is_set = 0;
}

/* A watch is told once when it is set. */
static void start(void)
{
    int i;

    xenstore_parse_domain_config(GUEST);
    for (i = 0; i < MAX_NODES && watches[i].name; i++)
        fire(watches[i].name);
}

int main(void)
{
    char line[1024];

    logfile = fopen("/dev/null", "w");
    domid = GUEST;
    xsh = (struct xs_handle *)line;
    while (fgets(line, sizeof(line), stdin)) {
        char *word = strtok(line, " \n"), *rest = strtok(NULL, "\n"), *value = rest ? strchr(rest, '=') : NULL;

        if (value)
            *value++ = '\0';
        if (word && !strcmp(word, "start")) {
            start();
        } else if (value && !strcmp(word, "device")) {
            set(devices, rest, value);
        } else if (value && (!strcmp(word, "node") || !strcmp(word, "change"))) {
            set(nodes, rest, value);
            if (word[0] == 'c')
                fire(rest);
        } else {
            return 2;
        }
    }
    return 0;
}
