// SPDX-License-Identifier: GPL-2.0-only
// ioctl_fuzz BDF SECONDS [SEED]: processes that do anything, right or wrong, with every file of
// vqlane.ko, on the daemon's side and the VMM's, share files, and are killed. What the kernel
// thinks of it is in its log; here it is asked whether all is as before at the end, and whether
// each command was reached well enough to have succeeded: for that it goes on beyond SECONDS, to
// ten times as many (and VQL_SLOWER times that).
//
// Nothing is written that a drive would take for a command: what memory it then wrote to would be
// the fuzzer's fault.
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "vdpa.h"

enum { WORKERS = 3, FILES = 32, MAPS = 24, NAMES = 3, ARENA = 8 << 20 };

enum kind { CONTROL, CTRL, DISK, QUEUE, MSPACE, QPAIR, VHOST, KINDS };

static const struct {
    const char* name;
    enum kind kind;
    unsigned long request;
} commands[] = {
#define COMMAND(kind, name)                                                                        \
    { #name, kind, VQL_IOC_##name }
    COMMAND(CONTROL, VERSION),    COMMAND(CONTROL, DISK_CREATE),   COMMAND(CONTROL, DISK_CLAIM),
    COMMAND(CONTROL, DISK_NEXT),  COMMAND(CONTROL, MSPACE_CREATE), COMMAND(DISK, DISK_STATE),
    COMMAND(DISK, DISK_QUEUE),    COMMAND(DISK, DISK_QUEUE_FD),    COMMAND(DISK, DISK_ACQUIRE),
    COMMAND(DISK, DISK_YIELD),    COMMAND(DISK, DISK_CONFIG),      COMMAND(DISK, DISK_BROKEN),
    COMMAND(DISK, DISK_REMOVE),   COMMAND(MSPACE, MSPACE_REGIONS), COMMAND(CTRL, CTRL_INFO),
    COMMAND(CTRL, NS_INFO),       COMMAND(CTRL, ADMIN_READ),       COMMAND(CTRL, QPAIR_CREATE),
    COMMAND(CTRL, CTRL_RESET),    COMMAND(QPAIR, QPAIR_ARM),       COMMAND(QPAIR, QPAIR_ATTACH),
    COMMAND(QPAIR, QPAIR_DETACH), COMMAND(QPAIR, QPAIR_ABORT),     COMMAND(DISK, DISK_LANE),
    COMMAND(DISK, DISK_LEND),     COMMAND(DISK, DISK_TAKE),        COMMAND(DISK, DISK_REMAP),
#undef COMMAND
};
enum { COMMANDS = sizeof(commands) / sizeof(*commands) };

// Shared by all processes.
static struct { unsigned long calls[COMMANDS], done[COMMANDS], maps, touches, vmm; } * tally;

static uint64_t rng;
static struct {
    int fd;
    enum kind kind;
} files[FILES];
static struct {
    uint8_t* at;
    size_t bytes;
    bool is_writable;
} maps[MAPS];
static uint8_t* arena;
static uint64_t* words; // what lists and answers are in; an address that is a bit off harms nothing
static uint32_t last_slot;
// Linux 6.12 shows /dev/vhost-vdpa-N a moment before it is complete, and to close it in that moment
// is an oops (vhost_vdpa_probe() initializes the completion that release uses last of all). So none
// is opened while a disk is being created.
static int gate;

static uint64_t random64(void) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng * 0x2545F4914F6CDD1Dull;
}

static uint32_t below(uint32_t n) {
    return (uint32_t)(random64() >> 33) % n;
}

static bool one_in(uint32_t n) {
    return !below(n);
}

// ---- Values that find mistakes ----

static uint64_t odd_value(void) {
    static const uint64_t values[] = {
        0,    1,    2,    7,     8,          63,         64,         255,        1024,
        4095, 4096, 4097, 65535, 0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32, 1ull << 63};

    return one_in(4) ? random64() : values[below(sizeof(values) / sizeof(*values))] - one_in(8);
}

static void* odd_address(void) {
    static const uint32_t constant = 1;

    switch (below(6)) {
    case 0: return NULL;
    case 1: return (void*)8;
    case 2: return (void*)0xffff888000000000ull; // the kernel's
    case 3: return arena + ARENA - below(16);    // ends before the structure does
    case 4: return (void*)(uintptr_t)&constant;  // not to be written
    default: return arena + below(ARENA);
    }
}

// Changes some of @bytes at @at.
static void spoil(void* at, size_t bytes) {
    for (uint32_t n = below(3) + 1; n && bytes; n--) {
        size_t width = 1ul << below(4), place = below((uint32_t)bytes) / width * width;
        uint64_t value = odd_value();

        if (place + width <= bytes)
            memcpy((uint8_t*)at + place, &value, width);
    }
}

static void set_name(char* name) {
    snprintf(name, VQL_NAME_BYTES, "fuzz%u", below(NAMES));
}

// ---- Files and mappings ----

static void keep(int fd, enum kind kind) {
    uint32_t n = below(FILES);

    if (fd < 0)
        return;
    if (files[n].fd >= 0)
        close(files[n].fd);
    files[n].fd = fd;
    files[n].kind = kind;
}

// A file of @kind, or any; -1 when there is none (or another: being wrong is the point).
static int some_file(enum kind kind) {
    uint32_t n = below(FILES);

    for (uint32_t i = 0; i < FILES; i++, n = (n + 1) % FILES)
        if (files[n].fd >= 0 && (files[n].kind == kind || one_in(200)))
            return files[n].fd;
    return -1;
}

static void map_something(void) {
    static const uint64_t parts[] = {VQL_QPAIR_MAP_STATUS,   VQL_QPAIR_MAP_SQ,
                                     VQL_QPAIR_MAP_CQ,       VQL_QPAIR_MAP_DOORBELL,
                                     VQL_QPAIR_MAP_POOL,     VQL_QPAIR_MAP_SHADOW,
                                     VQL_QPAIR_MAP_EVENTIDX, VQL_QPAIR_MAP_DMA(0),
                                     VQL_QPAIR_MAP_DMA(1),   VQL_QPAIR_MAP_DMA(4095)};
    enum kind kind = one_in(3) ? below(KINDS) : QPAIR;
    uint32_t n = below(MAPS);
    uint64_t offset = kind == QPAIR ? parts[below(10)] : below(3) * (uint64_t)PAGE;
    size_t bytes = PAGE * (size_t)(1 + (one_in(4) ? below(1100) : 0));
    bool is_writable = one_in(2);
    int flags = one_in(10) ? MAP_PRIVATE : MAP_SHARED;
    void* at;

    if (one_in(10))
        offset = odd_value() & ~(uint64_t)(PAGE - 1);
    at = mmap(NULL, bytes, PROT_READ | (is_writable ? PROT_WRITE : 0), flags, some_file(kind),
              (off_t)offset);
    if (at == MAP_FAILED)
        return;
    tally->maps++;
    if (maps[n].at)
        munmap(maps[n].at, maps[n].bytes);
    maps[n].at = at;
    maps[n].bytes = bytes;
    maps[n].is_writable = is_writable;
}

static void use_map(void) {
    uint32_t n = below(MAPS);
    uint8_t* at = maps[n].at;
    size_t bytes = maps[n].bytes;

    if (!at)
        return;
    switch (below(12)) {
    case 0:
        munmap(at, bytes);
        maps[n].at = NULL;
        break;
    case 1: // a hole, in which nothing else will be mapped
        mmap(at + below((uint32_t)bytes) / PAGE * PAGE, PAGE, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
    case 2: mprotect(at, bytes, PROT_READ | (one_in(2) ? PROT_WRITE : 0)); break;
    case 3: madvise(at, bytes, one_in(2) ? MADV_DONTNEED : MADV_WILLNEED); break;
    case 4: madvise(at, bytes, one_in(2) ? MADV_DOFORK : MADV_DONTFORK); break;
    default: touch(at + below((uint32_t)bytes) / 4 * 4, maps[n].is_writable); tally->touches++;
    }
}

// ---- Commands, nearly right ----

static void make_regions(struct vql_mspace_create* req) {
    struct vql_mregion* regions = (void*)words;
    uint64_t guest = below(4) * (uint64_t)PAGE;

    req->nregions = one_in(20) ? (uint32_t)odd_value() : 1 + below(8);
    req->regions = (uintptr_t)regions;
    for (uint32_t i = 0; i < 8; i++) {
        uint64_t pages = 1 + below(200), from = below(ARENA / PAGE - 200);

        regions[i] = (struct vql_mregion){.guest = guest,
                                          .bytes = pages * PAGE,
                                          .user = (uintptr_t)arena + from * PAGE,
                                          .flags = one_in(4)};
        if (one_in(10) && maps[0].at)
            regions[i].user = (uintptr_t)maps[0].at; // what is not to be pinned
        guest += (pages + below(2)) * PAGE;
    }
    if (one_in(4))
        spoil(regions, 8 * sizeof(*regions));
}

static uint64_t epoch_of(int disk) {
    struct vql_disk_state state = {.size = sizeof(state)};

    ioctl(disk, VQL_IOC_DISK_STATE, &state);
    return state.epoch;
}

union any {
    uint32_t size;
    struct vql_disk_create disk_create;
    struct vql_disk_claim disk_claim;
    struct vql_disk_next disk_next;
    struct vql_mspace_create mspace_create;
    struct vql_disk_queue disk_queue;
    struct vql_disk_acquire disk_acquire;
    struct vql_disk_yield disk_yield;
    struct vql_disk_config disk_config;
    struct vql_disk_lane lane;
    struct vql_disk_lend lend;
    struct vql_disk_take take;
    struct vql_disk_remap remap;
    struct vql_mspace_regions regions;
    struct vql_ns_info ns_info;
    struct vql_admin_read admin_read;
    struct vql_qpair_create qpair_create;
    struct vql_qpair_attach attach;
    struct vql_qpair_detach detach;
    uint8_t bytes[512];
};

// What a disk may reach: valid, unless a bit is turned over later.
static void make_lane(struct vql_disk_lane* lane) {
    struct vql_lane_range* ranges = (struct vql_lane_range*)words;
    lane->slot = below(1025); // 1024 is one too many
    lane->busy_iops = below(1000);
    lane->nranges = below(4);
    lane->ranges = (uintptr_t)ranges;
    memset(ranges, 0, 4 * sizeof(*ranges));
    for (uint32_t i = 0; i < lane->nranges; i++) {
        ranges[i].target = i;
        ranges[i].ctrl_fd = one_in(4) ? -1 : some_file(CTRL);
        ranges[i].nsid = ranges[i].ctrl_fd == -1 ? 0 : 1;
        ranges[i].flags = below(2);
        ranges[i].sector = 8 * below(100);
        ranges[i].sectors = 8 * (1 + below(100));
    }
}

static void make_struct(unsigned long request, int fd, union any* any) {
    memset(any, 0, sizeof(*any));
    any->size = _IOC_SIZE(request);
    switch (request) {
    case VQL_IOC_DISK_CREATE:
        any->disk_create = a_disk("");
        set_name(any->disk_create.name);
        break;
    case VQL_IOC_DISK_CLAIM: set_name(any->disk_claim.name); break;
    case VQL_IOC_DISK_NEXT:
        if (one_in(2))
            set_name(any->disk_next.name);
        break;
    case VQL_IOC_MSPACE_CREATE: make_regions(&any->mspace_create); break;
    case VQL_IOC_DISK_QUEUE: any->disk_queue.index = below(QUEUES + 1); break;
    case VQL_IOC_DISK_ACQUIRE: any->disk_acquire.epoch = epoch_of(fd); break;
    case VQL_IOC_DISK_YIELD:
        any->disk_yield.nqueues = QUEUES;
        any->disk_yield.next_avail = (uintptr_t)words;
        break;
    case VQL_IOC_DISK_CONFIG: {
        struct vql_disk_create as_made = a_disk("");

        if (!one_in(4)) // else it has no capacity
            memcpy(any->disk_config.config, as_made.config, sizeof(as_made.config));
        break;
    }
    case VQL_IOC_DISK_LANE: make_lane(&any->lane); break;
    case VQL_IOC_DISK_LEND:
        any->lend.index = below(QUEUES + 1);
        any->lend.next_avail = below(one_in(4) ? 1 << 17 : 4);
        break;
    case VQL_IOC_DISK_TAKE: any->take.index = below(QUEUES + 1); break;
    case VQL_IOC_DISK_REMAP:
        any->remap.index = below(QUEUES + 1);
        any->remap.op = below(6);
        any->remap.sector = below(one_in(4) ? 1 << 30 : 100);
        any->remap.sectors = below(100);
        break;
    case VQL_IOC_MSPACE_REGIONS:
        any->regions.nregions = below(65);
        any->regions.regions = (uintptr_t)words;
        break;
    case VQL_IOC_NS_INFO: any->ns_info.nsid = below(4); break;
    case VQL_IOC_ADMIN_READ:
        any->admin_read.what = below(5);
        any->admin_read.nsid = any->admin_read.what ? below(3) : 0;
        any->admin_read.bytes = any->admin_read.what == VQL_ADMIN_SMART ? 512 : PAGE;
        any->admin_read.data = (uintptr_t)words;
        break;
    case VQL_IOC_QPAIR_CREATE:
        any->qpair_create.depth = 2 + below(one_in(4) ? 1024 : 62);
        any->qpair_create.pool_pages = below(one_in(4) ? 64 : 3);
        break;
    case VQL_IOC_QPAIR_ATTACH: any->attach.mspace_fd = some_file(MSPACE); break;
    case VQL_IOC_QPAIR_DETACH: any->detach.slot = one_in(2) ? last_slot : below(8); break;
    }
}

// Of what is no structure.
static unsigned long make_argument(unsigned long request) {
    if (one_in(10))
        return odd_value();
    switch (request) {
    case VQL_IOC_DISK_QUEUE_FD: return below(QUEUES + 1);
    case VQL_IOC_DISK_REMOVE: return below(2);
    default: return below(64);
    }
}

static void command(void) {
    static const enum kind makes[COMMANDS] = {
        [1] = DISK, [2] = DISK, [4] = MSPACE, [7] = QUEUE, [8] = MSPACE, [17] = QPAIR};
    uint32_t n = below(COMMANDS);
    unsigned long request = commands[n].request, argument;
    int fd = some_file(one_in(20) ? below(KINDS) : commands[n].kind);
    union any any;
    long result;

    // Rarely: these end what others are about.
    if ((request == VQL_IOC_CTRL_RESET || request == VQL_IOC_DISK_REMOVE) && !one_in(20))
        return;
    if (one_in(50))
        request = _IOC(below(4), VQL_IOC_MAGIC, below(256), below(300));
    if (_IOC_SIZE(request)) {
        make_struct(request, fd, &any);
        if (one_in(3))
            spoil(&any, _IOC_SIZE(request));
        argument = one_in(30) ? (uintptr_t)odd_address() : (uintptr_t)&any;
    } else {
        argument = make_argument(request);
    }
    if (request == VQL_IOC_DISK_CREATE)
        flock(gate, LOCK_EX);
    result = ioctl(fd, request, argument);
    flock(gate, LOCK_UN);
    if (request != commands[n].request)
        return;
    __atomic_fetch_add(&tally->calls[n], 1, __ATOMIC_RELAXED);
    if (result < 0)
        return;
    __atomic_fetch_add(&tally->done[n], 1, __ATOMIC_RELAXED);
    if (makes[n])
        keep((int)result, makes[n]);
    if (request == VQL_IOC_QPAIR_ATTACH)
        last_slot = any.attach.slot;
}

// ---- The VMM's side ----

static void tell_status(int fd, uint8_t status) {
    ioctl(fd, VHOST_VDPA_SET_STATUS, &status);
}

// A driver that sets a disk up, as it should be done, whatever the answers.
static void drive(int fd) {
    struct vmm v = {.fd = fd};
    uint64_t features = 0;
    int none = -1;

    ioctl(fd, VHOST_SET_OWNER);
    ioctl(fd, VHOST_GET_BACKEND_FEATURES, &features);
    ioctl(fd, VHOST_SET_BACKEND_FEATURES, &features);
    tell_status(v.fd, 0);
    tell_status(v.fd, S_FOUND);
    ioctl(fd, VHOST_GET_FEATURES, &features);
    ioctl(fd, VHOST_SET_FEATURES, &features);
    tell_status(v.fd, S_FEATURES);
    ioctl(fd, VHOST_VDPA_SET_CONFIG_CALL, &none);
    for (unsigned q = 0; q < QUEUES; q++) {
        struct vhost_vring_state num = {.index = q, .num = RING}, base = {.index = q};
        struct vhost_vring_addr addr = {.index = q,
                                        .desc_user_addr = DESC_AT(q),
                                        .avail_user_addr = AVAIL_AT(q),
                                        .used_user_addr = USED_AT(q)};

        ioctl(fd, VHOST_SET_VRING_NUM, &num);
        ioctl(fd, VHOST_SET_VRING_BASE, &base);
        ioctl(fd, VHOST_SET_VRING_ADDR, &addr);
        enable_queue(&v, q, true);
    }
    iotlb(&v, VHOST_IOTLB_UPDATE, SHARED_AT, MIB, arena, VHOST_ACCESS_RW);
    tell_status(v.fd, S_RUNNING);
}

static void vmm(void) {
    struct vmm v = {.fd = some_file(VHOST)};
    struct vhost_vring_state state = {.index = below(QUEUES + 1), .num = below(600)};
    uint64_t page = below(ARENA / PAGE / 2);
    uint8_t config[16];
    struct vhost_vdpa_config* c = (void*)words;

    tally->vmm++;
    switch (below(10)) {
    case 0:
    case 1: drive(v.fd); break;
    case 2: tell_status(v.fd, one_in(2) ? 0 : (uint8_t)odd_value()); break;
    case 3:
        iotlb(&v, one_in(2) ? VHOST_IOTLB_UPDATE : VHOST_IOTLB_INVALIDATE, page * PAGE,
              (1 + below(256)) * PAGE, arena + page * PAGE, (uint8_t)(1 + below(3)));
        break;
    case 4: iotlb(&v, VHOST_IOTLB_BATCH_BEGIN + (uint8_t)below(2), 0, 0, NULL, 0); break;
    case 5: enable_queue(&v, state.index, one_in(2)); break;
    case 6: ioctl(v.fd, one_in(2) ? VHOST_VDPA_SUSPEND : VHOST_VDPA_RESUME); break;
    case 7: ioctl(v.fd, one_in(2) ? VHOST_GET_VRING_BASE : VHOST_SET_VRING_BASE, &state); break;
    case 8: ioctl(v.fd, VHOST_SET_VRING_NUM, &state); break;
    case 9:
        c->off = (uint32_t)odd_value();
        c->len = below(sizeof(config));
        ioctl(v.fd, one_in(2) ? VHOST_VDPA_GET_CONFIG : VHOST_VDPA_SET_CONFIG, c);
        break;
    }
}

// ---- A process ----

static void open_something(void) {
    char path[64];

    switch (below(3)) {
    case 0: keep(open("/dev/vqlane/control", O_RDWR | O_CLOEXEC), CONTROL); break;
    case 1: keep(open(node, O_RDWR | O_CLOEXEC), CTRL); break;
    default:
        snprintf(path, sizeof(path), "/dev/vhost-vdpa-%u", below(NAMES + 1));
        flock(gate, LOCK_SH);
        keep(open(path, O_RDWR | O_CLOEXEC), VHOST);
        flock(gate, LOCK_UN);
    }
}

static void use_file(void) {
    uint32_t n = below(FILES);
    uint64_t bell = one_in(2);
    int fd = files[n].fd;

    if (fd < 0)
        return;
    switch (below(6)) {
    case 0:
        close(fd);
        files[n].fd = -1;
        break;
    case 1: keep(dup(fd), files[n].kind); break;
    case 2:
        // Only a bell: what vhost-vdpa takes is the VMM's part, above.
        if (files[n].kind == QUEUE && write(fd, &bell, one_in(8) ? 4 : 8) < 0)
            errno = 0;
        break;
    case 3:
        if (files[n].kind != VHOST && read(fd, words, 8) < 0)
            errno = 0;
        break;
    default: events_of(fd, POLLIN | POLLPRI | POLLOUT, 0);
    }
}

static void act(uint32_t times);

// Another that has the same files, for a while.
static void fork_twin(void) {
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        rng ^= 0x5bd1e995;
        gate = open("/dev/vqlane/control", O_RDWR | O_CLOEXEC);
        act(200);
        _exit(0);
    }
}

static void act(uint32_t times) {
    for (uint32_t i = 0; !times || i < times; i++) {
        uint32_t what = below(100);

        if (what < 55)
            command();
        else if (what < 63)
            map_something();
        else if (what < 78)
            use_map();
        else if (what < 84)
            open_something();
        else if (what < 92)
            use_file();
        else if (what < 99)
            vmm();
        else if (!times && one_in(10))
            fork_twin();
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}

static void work(uint64_t seed) {
    int fd;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rng = (seed + 1) * 0x9E3779B97F4A7C15ull;
    gate = open("/dev/vqlane/control", O_RDWR | O_CLOEXEC);
    for (uint32_t n = 0; n < FILES; n++)
        files[n].fd = -1;
    arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (ftruncate(fd, ARENA / 2) ||
        mmap(arena, ARENA / 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        _exit(1);
    close(fd);
    words = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    words += 32 * PAGE / sizeof(*words);
    act(0);
}

// ---- The end ----

static void remove_disks(void) {
    struct vql_disk_next next = {.size = sizeof(next)};

    while (ioctl(control, VQL_IOC_DISK_NEXT, &next) == 0) {
        int disk = -1;

        // The last of the processes may still be dying.
        CHECK("a disk that nobody has is claimed", SOON(10, (disk = disk_claim(next.name)) >= 0));
        CHECK("and removed", SOON(10, !ioctl(disk, VQL_IOC_DISK_REMOVE, 0)));
        close(disk);
    }
}

static bool all_have_succeeded(void) {
    for (unsigned n = 0; n < COMMANDS; n++)
        if (!tally->done[n])
            return false;
    return true;
}

int main(int argc, char** argv) {
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
    double seconds = argc > 2 ? atof(argv[2]) : 10, start = now_s();
    pid_t pids[WORKERS] = {0};
    unsigned killed = 0;

    open_ctrl(argc, argv);
    control = open("/dev/vqlane/control", O_RDWR | O_CLOEXEC);
    NEED(control >= 0);
    set_parameter("drain_ms", 50);
    set_parameter("admin_timeout_s", 2); // doorbells of the admin queue are touched as well
    tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    printf("# seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    rng = seed * 2 + 1;
    for (unsigned n = 0; now_s() < start + seconds ||
                         (!all_have_succeeded() && now_s() < start + seconds * 10 * patience());
         n = (n + 1) % WORKERS) {
        if (pids[n]) {
            kill(pids[n], SIGKILL);
            waitpid(pids[n], NULL, 0);
            killed++;
        }
        pids[n] = fork();
        if (pids[n] == 0)
            work(seed + killed * WORKERS + n);
        sleep_ms(below(700));
    }
    for (unsigned n = 0; n < WORKERS; n++) {
        kill(pids[n], SIGKILL);
        waitpid(pids[n], NULL, 0);
    }
    for (unsigned n = 0; n < COMMANDS; n++) {
        printf("# %-15s %7lu calls, %7lu of them succeeded\n", commands[n].name, tally->calls[n],
               tally->done[n]);
        say(commands[n].name, tally->done[n], "was never reached: has never succeeded");
    }
    printf("# %u processes killed; %lu mappings, %lu touches, %lu things that a VMM does\n", killed,
           tally->maps, tally->touches, tally->vmm);
    remove_disks();
    CHECK("the controller is live, and all its queue pairs are free",
          SOON(5, get_info().free_qpairs == get_info().max_qpairs) &&
              get_info().state == VQL_CTRL_LIVE);
    CHECK("and work", new_lane_works());
    return failures != 0;
}
