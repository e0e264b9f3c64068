// SPDX-License-Identifier: GPL-2.0-only
// The two sides of a vDPA disk of vqlane.ko, for programs that play both at once: the VMM, through
// /dev/vhost-vdpa-N, and the daemon, through /dev/vqlane/control.
#pragma once

#include "lane.h"

#include <dirent.h>
#include <err.h>
#include <linux/vhost.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>

#ifndef VHOST_VDPA_RESUME
#define VHOST_VDPA_RESUME _IO(VHOST_VIRTIO, 0x7E)
#endif

#define BIT(n) (1ull << (n))
#define MIB (1ull << 20)

// ---- Telling what was seen ----

static const char* part = "?"; // what is being tested

__attribute__((format(printf, 1, 2))) static inline void fail(const char* format, ...) {
    va_list args;
    va_start(args, format);
    printf("not ok %s: ", part);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    failures++;
}

static const char* skipped; // why it was not

// The part goes on after a failure, so that it undoes what it did.
#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond))                                                                               \
            fail("line %d: %s (errno %d)", __LINE__, #cond, errno);                                \
    } while (0)

// @call fails with errno @want.
#define EXPECT_ERRNO(call, want)                                                                   \
    do {                                                                                           \
        errno = 0;                                                                                 \
        long got_ = (long)(call);                                                                  \
        if (got_ >= 0 || errno != (want))                                                          \
            fail("line %d: %s gives %ld, errno %d, want %s", __LINE__, #call, got_, errno, #want); \
    } while (0)

// What cannot go wrong in a machine that works.
static inline long must(long result, const char* what) {
    if (result < 0)
        err(1, "%s", what);
    return result;
}
#define MUST(call) must((long)(call), #call)

// How many times as long to wait: the debug kernel is slow.
static inline double patience(void) {
    const char* slower = getenv("VQL_SLOWER");

    return slower ? atof(slower) : 1;
}

// Within @seconds?
#define SOON(seconds, cond)                                                                        \
    __extension__({                                                                                \
        double until_ = now_s() + (seconds)*patience();                                            \
        bool seen_;                                                                                \
        while (!(seen_ = (cond)) && now_s() < until_)                                              \
            usleep(2000);                                                                          \
        seen_;                                                                                     \
    })

// Memory that may have been taken away: does a read (or a write of the same word) succeed?
static inline bool is_there(volatile void* p, bool write) {
    return touch(p, write) == 0;
}

// ---- The VMM ----

enum { QUEUES = 2, RING = 256 };
// Guest addresses: of a queue's rings (in the first MiB) and of three kinds of memory.
#define SHARED_AT 0ull           // memfd
#define PRIVATE_AT 0x40000000ull // anonymous
#define ROM_AT 0x80000000ull     // read only
#define SHARED_BYTES (4 * MIB)
#define PRIVATE_BYTES (4 * MIB)
#define ROM_BYTES (16 * PAGE)
#define DESC_AT(q) (SHARED_AT + (q)*0x10000ull)
#define AVAIL_AT(q) (DESC_AT(q) + 0x4000)
#define USED_AT(q) (DESC_AT(q) + 0x8000)

struct vmm {
    int fd;
    uint8_t *shared, *private, *rom;
    int kick[QUEUES], call[QUEUES], config;
};

static inline uint8_t* map_memory(uint64_t bytes, bool shared) {
    int fd = -1;
    if (shared) {
        fd = (int)MUST(memfd_create("guest", MFD_CLOEXEC));
        MUST(ftruncate(fd, (off_t)bytes));
    }
    void* p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS) | MAP_POPULATE, fd, 0);
    if (p == MAP_FAILED)
        err(1, "mmap %llu bytes", (unsigned long long)bytes);
    if (shared)
        close(fd);
    return p;
}

static inline int iotlb(struct vmm* v, uint8_t type, uint64_t iova, uint64_t bytes, const void* p,
                        uint8_t perm) {
    struct vhost_msg_v2 msg = {.type = VHOST_IOTLB_MSG_V2};
    msg.iotlb.type = type;
    msg.iotlb.iova = iova;
    msg.iotlb.size = bytes;
    msg.iotlb.uaddr = (uint64_t)(uintptr_t)p;
    msg.iotlb.perm = perm;
    return write(v->fd, &msg, sizeof(msg)) == (ssize_t)sizeof(msg) ? 0 : -1;
}

// The node of disk @name's vDPA device, opened, or -1.
static inline int open_node(const char* name) {
    char path[300];
    snprintf(path, sizeof(path), "/sys/bus/vdpa/devices/vqlane-%s", name);
    DIR* dir = opendir(path);
    int fd = -1;
    for (struct dirent* entry; dir && fd < 0 && (entry = readdir(dir));) {
        if (strncmp(entry->d_name, "vhost-vdpa-", 11) != 0)
            continue;
        char file[300];
        snprintf(file, sizeof(file), "/dev/%s", entry->d_name);
        fd = open(file, O_RDWR | O_CLOEXEC);
    }
    if (dir)
        closedir(dir);
    return fd;
}

static inline void map_all(struct vmm* v) {
    MUST(iotlb(v, VHOST_IOTLB_BATCH_BEGIN, 0, 0, NULL, 0));
    MUST(iotlb(v, VHOST_IOTLB_UPDATE, SHARED_AT, SHARED_BYTES, v->shared, VHOST_ACCESS_RW));
    MUST(iotlb(v, VHOST_IOTLB_UPDATE, PRIVATE_AT, PRIVATE_BYTES, v->private, VHOST_ACCESS_RW));
    MUST(iotlb(v, VHOST_IOTLB_UPDATE, ROM_AT, ROM_BYTES, v->rom, VHOST_ACCESS_RO));
    MUST(iotlb(v, VHOST_IOTLB_BATCH_END, 0, 0, NULL, 0));
}

static inline void vmm_open(struct vmm* v, const char* name) {
    *v = (struct vmm){.fd = -1};
    if (!SOON(5, (v->fd = open_node(name)) >= 0))
        err(1, "the vDPA device of disk %s", name);
    MUST(ioctl(v->fd, VHOST_SET_OWNER));
    uint64_t backend = 0;
    MUST(ioctl(v->fd, VHOST_GET_BACKEND_FEATURES, &backend));
    MUST(ioctl(v->fd, VHOST_SET_BACKEND_FEATURES, &backend));
    v->shared = map_memory(SHARED_BYTES, true);
    v->private = map_memory(PRIVATE_BYTES, false);
    v->rom = map_memory(ROM_BYTES, false);
    fill(v->shared, SHARED_BYTES, 1);
    fill(v->private, PRIVATE_BYTES, 2);
    fill(v->rom, ROM_BYTES, 3);
    for (int i = 0; i < QUEUES; i++) {
        v->kick[i] = (int)MUST(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        v->call[i] = (int)MUST(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    }
    v->config = (int)MUST(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

static inline void vmm_close(struct vmm* v) {
    close(v->fd);
    munmap(v->shared, SHARED_BYTES);
    munmap(v->private, PRIVATE_BYTES);
    munmap(v->rom, ROM_BYTES);
    for (int i = 0; i < QUEUES; i++) {
        close(v->kick[i]);
        close(v->call[i]);
    }
    close(v->config);
}

static inline uint8_t get_status(struct vmm* v) {
    uint8_t status = 0;
    MUST(ioctl(v->fd, VHOST_VDPA_GET_STATUS, &status));
    return status;
}

// As QEMU does it: what the device has set meanwhile (NEEDS_RESET) cannot be taken back by a write.
static inline int set_status(struct vmm* v, uint8_t status) {
    int result = -1;
    for (int tries = 0; tries < 3 && result; tries++) {
        uint8_t written = status ? status | get_status(v) : 0;
        result = ioctl(v->fd, VHOST_VDPA_SET_STATUS, &written);
    }
    return result;
}

#define S_FOUND (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
#define S_FEATURES (S_FOUND | VIRTIO_CONFIG_S_FEATURES_OK)
#define S_RUNNING (S_FEATURES | VIRTIO_CONFIG_S_DRIVER_OK)

static inline void set_queue(struct vmm* v, unsigned q) {
    struct vhost_vring_state num = {.index = q, .num = RING}, base = {.index = q};
    struct vhost_vring_addr addr = {.index = q,
                                    .desc_user_addr = DESC_AT(q),
                                    .avail_user_addr = AVAIL_AT(q),
                                    .used_user_addr = USED_AT(q)};
    struct vhost_vring_file kick = {.index = q, .fd = v->kick[q]},
                            call = {.index = q, .fd = v->call[q]};
    MUST(ioctl(v->fd, VHOST_SET_VRING_NUM, &num));
    MUST(ioctl(v->fd, VHOST_SET_VRING_BASE, &base));
    MUST(ioctl(v->fd, VHOST_SET_VRING_ADDR, &addr));
    MUST(ioctl(v->fd, VHOST_SET_VRING_KICK, &kick));
    MUST(ioctl(v->fd, VHOST_SET_VRING_CALL, &call));
}

static inline int enable_queue(struct vmm* v, unsigned q, bool on) {
    struct vhost_vring_state state = {.index = q, .num = on};
    return ioctl(v->fd, VHOST_VDPA_SET_VRING_ENABLE, &state);
}

// In QEMU's order: features, queues; the memory comes then, and driver ok.
static inline void vmm_negotiate(struct vmm* v) {
    MUST(set_status(v, 0));
    MUST(set_status(v, S_FOUND));
    uint64_t features = 0;
    MUST(ioctl(v->fd, VHOST_GET_FEATURES, &features));
    MUST(ioctl(v->fd, VHOST_SET_FEATURES, &features));
    MUST(set_status(v, S_FEATURES));
    MUST(ioctl(v->fd, VHOST_VDPA_SET_CONFIG_CALL, &v->config));
    for (unsigned q = 0; q < QUEUES; q++) {
        set_queue(v, q);
        MUST(enable_queue(v, q, true));
    }
}

static inline void vmm_start(struct vmm* v) {
    vmm_negotiate(v);
    map_all(v);
    MUST(set_status(v, S_RUNNING));
}

static inline bool take_event(int fd) {
    uint64_t count;
    return read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count);
}

// ---- The daemon ----

#define FEATURES                                                                                   \
    (BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_MQ) | BIT(28) |     \
     BIT(29))

static int control = -1;

static inline struct vql_disk_create a_disk(const char* name) {
    struct vql_disk_create create = {
        .size = sizeof(create), .features = FEATURES, .queues = QUEUES, .queue_size = RING};
    snprintf(create.name, sizeof(create.name), "%s", name);
    struct virtio_blk_config config = {.capacity = 2048, .wce = 1, .num_queues = QUEUES};
    memcpy(create.config, &config,
           sizeof(config) < sizeof(create.config) ? sizeof(config) : sizeof(create.config));
    return create;
}

static inline int disk_create(const char* name) {
    struct vql_disk_create create = a_disk(name);
    return ioctl(control, VQL_IOC_DISK_CREATE, &create);
}

static inline int disk_claim(const char* name) {
    struct vql_disk_claim claim = {.size = sizeof(claim)};
    snprintf(claim.name, sizeof(claim.name), "%s", name);
    return ioctl(control, VQL_IOC_DISK_CLAIM, &claim);
}

static inline struct vql_disk_state disk_state(int disk) {
    struct vql_disk_state state = {.size = sizeof(state)};
    MUST(ioctl(disk, VQL_IOC_DISK_STATE, &state));
    return state;
}

static inline struct vql_disk_queue disk_queue(int disk, unsigned q) {
    struct vql_disk_queue queue = {.size = sizeof(queue), .index = q};
    MUST(ioctl(disk, VQL_IOC_DISK_QUEUE, &queue));
    return queue;
}

static inline bool has(int disk, uint32_t flags) {
    return (disk_state(disk).flags & flags) == flags;
}

static inline int acquire_at(int disk, uint64_t epoch) {
    struct vql_disk_acquire acquire = {.size = sizeof(acquire), .epoch = epoch};
    return ioctl(disk, VQL_IOC_DISK_ACQUIRE, &acquire);
}

// The memory's fd, or -1.
static inline int acquire(int disk) {
    return acquire_at(disk, disk_state(disk).epoch);
}

// Queue N goes on at @next + N; or @next is VQL_YIELD_UNTOUCHED, for all.
static inline int yield_at(int disk, uint32_t next) {
    uint32_t nexts[QUEUES];
    for (uint32_t q = 0; q < QUEUES; q++)
        nexts[q] = next == VQL_YIELD_UNTOUCHED ? next : next + q;
    struct vql_disk_yield yield = {
        .size = sizeof(yield), .nqueues = QUEUES, .next_avail = (uint64_t)(uintptr_t)nexts};
    return ioctl(disk, VQL_IOC_DISK_YIELD, &yield);
}

struct memory {
    int fd;
    uint8_t* base;
    uint64_t pages;
    uint32_t nregions;
    struct vql_mregion regions[64];
};

static inline void memory_open(struct memory* m, int fd) {
    *m = (struct memory){.fd = fd};
    struct vql_mspace_regions regions = {
        .size = sizeof(regions), .nregions = 64, .regions = (uint64_t)(uintptr_t)m->regions};
    MUST(ioctl(fd, VQL_IOC_MSPACE_REGIONS, &regions));
    m->pages = regions.pages;
    m->nregions = regions.nregions;
    m->base = mmap(NULL, m->pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m->base == MAP_FAILED)
        err(1, "mapping a guest's memory");
}

static inline void memory_close(struct memory* m) {
    munmap(m->base, m->pages * PAGE);
    close(m->fd);
}

// Where the guest address lies in the mapping; NULL: nowhere.
static inline uint8_t* at(const struct memory* m, uint64_t guest) {
    for (uint32_t i = 0; i < m->nregions; i++) {
        const struct vql_mregion* r = &m->regions[i];
        if (guest >= r->guest && guest - r->guest < r->bytes)
            return m->base + r->first_page * PAGE + (guest - r->guest);
    }
    return NULL;
}

static inline uint8_t* map_record(int disk) {
    void* p =
        mmap(NULL, QUEUES * VQL_INFLIGHT_BYTES(RING), PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0);
    if (p == MAP_FAILED)
        err(1, "mapping the record");
    return p;
}

// A module parameter; returns what it was.
static inline unsigned set_parameter(const char* name, unsigned value) {
    char path[100];
    unsigned old = 0;
    snprintf(path, sizeof(path), "/sys/module/vqlane/parameters/%s", name);
    FILE* file = fopen(path, "r+");
    if (!file || fscanf(file, "%u", &old) != 1)
        err(1, "%s", path);
    rewind(file);
    fprintf(file, "%u\n", value);
    if (fclose(file))
        err(1, "%s", path);
    return old;
}

// ---- Both ----

// A running disk with its lease taken and its memory mapped: where most parts begin.
struct scene {
    struct vmm vmm;
    int disk;
    struct memory memory;
};

static inline void scene_of(struct scene* s, const char* name) {
    s->disk = (int)MUST(disk_create(name));
    vmm_open(&s->vmm, name);
    vmm_start(&s->vmm);
    memory_open(&s->memory, (int)MUST(acquire(s->disk)));
}

static inline void scene_open(struct scene* s) {
    scene_of(s, "probe");
}

// Whatever has become of them. The disk is gone when this returns.
static inline void scene_close(struct scene* s) {
    memory_close(&s->memory);
    yield_at(s->disk, 0);
    vmm_close(&s->vmm);
    EXPECT(ioctl(s->disk, VQL_IOC_DISK_REMOVE, 0) == 0);
    close(s->disk);
}

// A call of the VMM's that waits for the daemon, in a thread of its own.
struct call {
    pthread_t thread;
    int (*function)(struct vmm*);
    struct vmm* vmm;
    int result;
    double seconds;
    volatile bool done;
};

static inline void* call_run(void* arg) {
    struct call* c = arg;
    double start = now_s();
    c->result = c->function(c->vmm);
    c->seconds = now_s() - start;
    c->done = true;
    return NULL;
}

static inline void call_start(struct call* c, struct vmm* v, int (*function)(struct vmm*)) {
    *c = (struct call){.function = function, .vmm = v};
    MUST(-pthread_create(&c->thread, NULL, call_run, c));
}

static inline int call_end(struct call* c) {
    pthread_join(c->thread, NULL);
    return c->result;
}

static inline int suspend(struct vmm* v) {
    return ioctl(v->fd, VHOST_VDPA_SUSPEND);
}
static inline int reset(struct vmm* v) {
    return set_status(v, 0);
}
static inline int stop_queue(struct vmm* v) {
    return enable_queue(v, 1, false);
}

static inline int vring_base(struct vmm* v, unsigned q) {
    struct vhost_vring_state base = {.index = q};
    return ioctl(v->fd, VHOST_GET_VRING_BASE, &base) ? -1 : (int)base.num;
}

static inline bool readable(int fd) {
    return events_of(fd, POLLIN, 0) & POLLIN;
}

// ---- Parts of a program ----

struct part {
    const char* name;
    void (*run)(void);
};

// Those that @names names, or all. The program's exit status.
static inline int run_parts(const struct part* parts, size_t nparts, int nnames, char** names) {
    int failed = 0;
    catch_faults();
    setvbuf(stdout, NULL, _IOLBF, 0);
    control = (int)MUST(open("/dev/vqlane/control", O_RDWR | O_CLOEXEC));
    for (size_t i = 0; i < nparts; i++) {
        bool wanted = nnames == 0;
        for (int n = 0; n < nnames; n++)
            wanted = wanted || !strcmp(names[n], parts[i].name);
        if (!wanted)
            continue;
        part = parts[i].name;
        failures = 0;
        skipped = NULL;
        parts[i].run();
        if (skipped)
            printf("skipped %s: %s\n", part, skipped);
        else if (failures == 0)
            printf("ok %s\n", part);
        failed += failures;
    }
    return failed != 0;
}
