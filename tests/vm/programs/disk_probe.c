// SPDX-License-Identifier: GPL-2.0-only
// Disks of vqlane.ko, looked at from both sides: plays the VMM and the daemon. Says "ok NAME" or
// "not ok NAME: why", a line each.
//
//   disk_probe [NAME…]   these parts, or all
#include "vdpa.h"

#include <sys/wait.h>
#include <vqlane/io.h>
#include <vqlane/remap.h>

// ---- The parts ----

static void creation(void) {
    struct vql_disk_create c;
#define REFUSED(change, want)                                                                      \
    do {                                                                                           \
        c = a_disk("probe");                                                                       \
        change;                                                                                    \
        EXPECT_ERRNO(ioctl(control, VQL_IOC_DISK_CREATE, &c), want);                               \
    } while (0)
    REFUSED(c.queues = 0, EINVAL);
    REFUSED(c.queues = 65, EINVAL);
    REFUSED(c.queue_size = 3, EINVAL);
    REFUSED(c.queue_size = 2048, EINVAL);
    REFUSED(c.features |= 1, EINVAL);
    REFUSED(c.name[0] = 0, EINVAL);
    REFUSED(c.name[1] = '/', EINVAL);
    REFUSED(c.name[20] = 'x', EINVAL);
    REFUSED(memset(c.name, 'x', sizeof(c.name)), EINVAL);
#undef REFUSED
    EXPECT_ERRNO(disk_claim("probe"), ENOENT);
    int disk = (int)MUST(disk_create("probe"));
    EXPECT_ERRNO(disk_create("probe"), EEXIST);
    EXPECT_ERRNO(disk_claim("probe"), EBUSY);
    EXPECT_ERRNO(ioctl(disk, VQL_IOC_DISK_REMOVE, 2), EINVAL);
    EXPECT_ERRNO(ioctl(disk, VQL_IOC_DISK_QUEUE_FD, QUEUES), EINVAL);
    EXPECT_ERRNO(acquire(disk), EAGAIN);
    EXPECT(ioctl(disk, VQL_IOC_DISK_REMOVE, 0) == 0);
    EXPECT_ERRNO(ioctl(disk, VQL_IOC_DISK_REMOVE, 0), ENODEV);
    close(disk);
    EXPECT((disk = disk_create("probe")) >= 0);
    close(disk);
    EXPECT((disk = disk_claim("probe")) >= 0);
    EXPECT(ioctl(disk, VQL_IOC_DISK_REMOVE, 0) == 0);
    close(disk);
}

// Each byte of the field is refused when it is not zero, and so is the structure in another size.
// All else in @good, or zeroes, is not refused with EINVAL.
struct fixed {
    unsigned long command;
    const void* good;
    size_t bytes, zero_at, zero_bytes;
};
#define ZERO(command, good, type, field)                                                           \
    {                                                                                              \
        command, good, sizeof(struct type), offsetof(struct type, field),                          \
            sizeof(((struct type*)0)->field)                                                       \
    }

static void check_fixed(int fd, const struct fixed* all, size_t count) {
    uint8_t bytes[4096];
    for (size_t i = 0; i < count; i++) {
        const struct fixed* f = &all[i];
        memset(bytes, 0, sizeof(bytes));
        if (f->good)
            memcpy(bytes, f->good, f->bytes);
        *(uint32_t*)bytes = (uint32_t)f->bytes;
        for (size_t at = f->zero_at; at < f->zero_at + f->zero_bytes; at++) {
            bytes[at] = 1;
            errno = 0;
            if (ioctl(fd, f->command, bytes) >= 0 || errno != EINVAL)
                fail("command %#lx with byte %zu set: errno %d", f->command, at, errno);
            bytes[at] = 0;
        }
        for (int more = -4; more <= 8; more += 12) {
            *(uint32_t*)bytes = (uint32_t)((int)f->bytes + more);
            errno = 0;
            if (ioctl(fd, f->command, bytes) >= 0 || errno != (more < 0 ? EINVAL : E2BIG))
                fail("command %#lx with %d bytes more: errno %d", f->command, more, errno);
        }
        *(uint32_t*)bytes = (uint32_t)f->bytes;
        if (ioctl(fd, f->command, bytes) < 0 && errno == EINVAL)
            fail("command %#lx is refused anyway", f->command);
    }
}

static void reserved(void) {
    static uint8_t memory[2 * PAGE] __attribute__((aligned(PAGE)));
    struct scene s;
    scene_open(&s);
    const struct vql_disk_create same = a_disk("probe"); // which is there, and claimed
    const struct vql_disk_claim claimed = {.name = "probe"};
    const struct vql_mregion region = {.bytes = PAGE, .user = (uint64_t)(uintptr_t)memory};
    const struct vql_mregion odd = {.bytes = PAGE, .user = region.user, .reserved = 1};
    const struct vql_mspace_create mspace = {.nregions = 1,
                                             .regions = (uint64_t)(uintptr_t)&region};
    const struct fixed of_control[] = {
        ZERO(VQL_IOC_VERSION, NULL, vql_version, reserved),
        ZERO(VQL_IOC_DISK_CREATE, &same, vql_disk_create, flags),
        ZERO(VQL_IOC_DISK_CREATE, &same, vql_disk_create, reserved),
        ZERO(VQL_IOC_DISK_CLAIM, &claimed, vql_disk_claim, flags),
        ZERO(VQL_IOC_DISK_CLAIM, &claimed, vql_disk_claim, reserved),
        ZERO(VQL_IOC_MSPACE_CREATE, &mspace, vql_mspace_create, reserved),
    };
    const struct fixed of_disk[] = {
        ZERO(VQL_IOC_DISK_STATE, NULL, vql_disk_state, reserved),
        ZERO(VQL_IOC_DISK_CONFIG, NULL, vql_disk_config, reserved),
        ZERO(VQL_IOC_DISK_LANE, NULL, vql_disk_lane, reserved),
        ZERO(VQL_IOC_DISK_ACQUIRE, NULL, vql_disk_acquire, flags),
    };
    check_fixed(control, of_control, sizeof(of_control) / sizeof(*of_control));
    check_fixed(s.disk, of_disk, sizeof(of_disk) / sizeof(*of_disk));
    struct vql_mspace_create with_odd = mspace;
    with_odd.size = sizeof(with_odd);
    with_odd.regions = (uint64_t)(uintptr_t)&odd;
    EXPECT_ERRNO(ioctl(control, VQL_IOC_MSPACE_CREATE, &with_odd), EINVAL);
    struct vql_lane_range range = {.ctrl_fd = -1, .sectors = 2048, .flags = 2};
    struct vql_disk_lane lane = {
        .size = sizeof(lane), .nranges = 1, .ranges = (uint64_t)(uintptr_t)&range};
    EXPECT_ERRNO(ioctl(s.disk, VQL_IOC_DISK_LANE, &lane), EINVAL);
    range.flags = 0;
    EXPECT(ioctl(s.disk, VQL_IOC_DISK_LANE, &lane) == 0);
    struct vql_disk_lend lend = {.size = sizeof(lend), .reserved = 1};
    EXPECT_ERRNO(ioctl(s.disk, VQL_IOC_DISK_LEND, &lend), EINVAL);
    lend.reserved = 0;
    lend.next_avail = 1 << 16;
    EXPECT_ERRNO(ioctl(s.disk, VQL_IOC_DISK_LEND, &lend), EINVAL);
    lane.nranges = 0;
    EXPECT(ioctl(s.disk, VQL_IOC_DISK_LANE, &lane) == 0);
    scene_close(&s);
}

// Of the record of what is in flight, on the claim.
static void mappings(void) {
    const size_t bytes = (QUEUES * VQL_INFLIGHT_BYTES(RING) + PAGE - 1) / PAGE * PAGE;
    const int rw = PROT_READ | PROT_WRITE;
    struct scene s;
    scene_open(&s);
    EXPECT(map_error(s.disk, 0, bytes, rw, MAP_SHARED) == 0);
    EXPECT(map_error(s.disk, 0, bytes, rw, MAP_PRIVATE) == EINVAL);
    EXPECT(map_error(s.disk, 0, bytes + PAGE, rw, MAP_SHARED) == EINVAL);
    EXPECT(map_error(s.disk, PAGE, PAGE, rw, MAP_SHARED) == EINVAL);
    EXPECT(map_error(s.disk, 1ull << 62, PAGE, rw, MAP_SHARED) != 0);
    EXPECT(map_error(control, 0, PAGE, rw, MAP_SHARED) == ENODEV);
    void* p = mmap(NULL, bytes, rw, MAP_SHARED, s.disk, 0);
    EXPECT(p != MAP_FAILED && mremap(p, bytes, bytes + PAGE, MREMAP_MAYMOVE) == MAP_FAILED);
    munmap(p, bytes);
    scene_close(&s);
}

static void write_file(const char* path, const char* text, int want) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    EXPECT(fd >= 0);
    errno = 0;
    ssize_t wrote = write(fd, text, strlen(text));
    if ((wrote < 0 ? errno : 0) != want)
        fail("writing %s to %s gives errno %d", text, path, errno);
    close(fd);
}

static void only_vhost_vdpa(void) {
    int disk = (int)MUST(disk_create("probe"));
    if (access("/sys/bus/vdpa/drivers/virtio_vdpa", F_OK)) {
        fail("the virtio_vdpa driver is not loaded");
    } else {
        write_file("/sys/bus/vdpa/drivers/vhost_vdpa/unbind", "vqlane-probe", 0);
        write_file("/sys/bus/vdpa/drivers/virtio_vdpa/bind", "vqlane-probe", ENODEV);
        write_file("/sys/bus/vdpa/drivers_probe", "vqlane-probe", 0);
    }
    char driver[300] = {0};
    EXPECT(readlink("/sys/bus/vdpa/devices/vqlane-probe/driver", driver, sizeof(driver) - 1) > 0);
    EXPECT(strstr(driver, "/vhost_vdpa") != NULL);
    EXPECT(ioctl(disk, VQL_IOC_DISK_REMOVE, 0) == 0);
    close(disk);
}

static void negotiation(void) {
    struct vmm v;
    int disk = (int)MUST(disk_create("probe"));
    vmm_open(&v, "probe");
    uint64_t offered = 0, features;
    MUST(ioctl(v.fd, VHOST_GET_FEATURES, &offered));
    EXPECT(offered == (FEATURES | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ACCESS_PLATFORM)));
    EXPECT(set_status(&v, S_FOUND) == 0);
    features = offered | BIT(VIRTIO_BLK_F_RO);
    EXPECT_ERRNO(ioctl(v.fd, VHOST_SET_FEATURES, &features), EINVAL);
    features = offered & ~BIT(VIRTIO_F_ACCESS_PLATFORM);
    EXPECT(ioctl(v.fd, VHOST_SET_FEATURES, &features) == 0);
    EXPECT(set_status(&v, S_FEATURES) == 0);
    EXPECT(get_status(&v) == S_FOUND);
    EXPECT(set_status(&v, S_RUNNING) == 0);
    EXPECT(get_status(&v) == S_FOUND);
    EXPECT(ioctl(v.fd, VHOST_SET_FEATURES, &offered) == 0);
    EXPECT(set_status(&v, S_FEATURES) == 0);
    EXPECT(get_status(&v) == S_FEATURES);
    EXPECT(disk_state(disk).features == offered);
    EXPECT(set_status(&v, 0) == 0);
    EXPECT(disk_state(disk).features == 0 && disk_state(disk).status == 0);
    vmm_close(&v);
    EXPECT(ioctl(disk, VQL_IOC_DISK_REMOVE, 0) == 0);
    close(disk);
}

static void state(void) {
    struct vmm v;
    int disk = (int)MUST(disk_create("probe"));
    EXPECT(readable(disk));
    struct vql_disk_state before = disk_state(disk), after;
    EXPECT(!readable(disk) && before.flags == 0 && before.status == 0);
    vmm_open(&v, "probe");
    vmm_start(&v);
    EXPECT(readable(disk));
    after = disk_state(disk);
    EXPECT(!readable(disk));
    EXPECT(after.flags == VQL_DISK_RUNNABLE && after.status == S_RUNNING);
    EXPECT(after.epoch > before.epoch && after.writeback == 1);
    for (unsigned q = 0; q < QUEUES; q++) {
        struct vql_disk_queue queue = disk_queue(disk, q);
        EXPECT(queue.desc == DESC_AT(q) && queue.avail == AVAIL_AT(q) && queue.used == USED_AT(q));
        EXPECT(queue.num == RING && queue.ready == 1 && queue.next_avail == 0);
    }
    EXPECT_ERRNO(acquire_at(disk, before.epoch), ESTALE);
    int fd = acquire(disk);
    EXPECT(fd >= 0);
    EXPECT_ERRNO(acquire(disk), EBUSY);
    EXPECT(has(disk, VQL_DISK_LEASED) && !has(disk, VQL_DISK_RECALL));
    EXPECT(yield_at(disk, 7) == 0);
    EXPECT_ERRNO(yield_at(disk, 7), ESTALE);
    EXPECT(disk_queue(disk, 1).next_avail == 8);
    close(fd);
    vmm_close(&v);
    EXPECT(disk_state(disk).flags == 0 && disk_state(disk).status == 0);
    EXPECT(ioctl(disk, VQL_IOC_DISK_REMOVE, 0) == 0);
    close(disk);
}

static void bells(void) {
    struct scene s;
    scene_open(&s);
    struct vmm* v = &s.vmm;
    int queue[QUEUES];
    uint64_t one = 1;
    for (int q = 0; q < QUEUES; q++)
        EXPECT((queue[q] = ioctl(s.disk, VQL_IOC_DISK_QUEUE_FD, q)) >= 0);
    EXPECT(!readable(queue[0]));
    EXPECT(write(v->kick[0], &one, 8) == 8);
    EXPECT(readable(queue[0]) && !readable(queue[1]));
    EXPECT(write(queue[1], &one, 8) == 8);
    EXPECT(take_event(v->call[1]) && !take_event(v->call[0]));
    EXPECT_ERRNO(write(queue[1], &one, 4), EINVAL);
    // Another eventfd in the middle, then none.
    int other = (int)MUST(eventfd(0, EFD_NONBLOCK));
    struct vhost_vring_file call = {.index = 1, .fd = other};
    EXPECT(ioctl(v->fd, VHOST_SET_VRING_CALL, &call) == 0);
    EXPECT(write(queue[1], &one, 8) == 8 && take_event(other) && !take_event(v->call[1]));
    call.fd = -1;
    EXPECT(ioctl(v->fd, VHOST_SET_VRING_CALL, &call) == 0);
    EXPECT(write(queue[1], &one, 8) == 8 && !take_event(other) && !take_event(v->call[1]));
    close(other);
    // After a reset no bell rings, and none hangs on from before.
    EXPECT(yield_at(s.disk, 0) == 0 && reset(v) == 0);
    EXPECT(!readable(queue[0]));
    EXPECT(write(queue[0], &one, 8) == 8 && !take_event(v->call[0]));
    for (int q = 0; q < QUEUES; q++)
        close(queue[q]);
    scene_close(&s);
}

static int get_config(struct vmm* v, unsigned offset, unsigned bytes, void* to) {
    struct vhost_vdpa_config* c = calloc(1, sizeof(*c) + bytes);
    c->off = offset;
    c->len = bytes;
    int result = ioctl(v->fd, VHOST_VDPA_GET_CONFIG, c);
    memcpy(to, c->buf, bytes);
    free(c);
    return result;
}

static int set_config_byte(struct vmm* v, unsigned offset, uint8_t byte) {
    struct vhost_vdpa_config* c = calloc(1, sizeof(*c) + 1);
    c->off = offset;
    c->len = 1;
    c->buf[0] = byte;
    int result = ioctl(v->fd, VHOST_VDPA_SET_CONFIG, c);
    free(c);
    return result;
}

static void config(void) {
    struct scene s;
    scene_open(&s);
    struct vmm* v = &s.vmm;
    struct virtio_blk_config blk = {0};
    EXPECT(get_config(v, 0, VQL_CONFIG_BYTES, &blk) == 0 && blk.capacity == 2048 && blk.wce == 1);
    EXPECT(get_config(v, 32, 1, &blk) == 0);
    EXPECT_ERRNO(get_config(v, 60, 8, &blk), EINVAL);
    EXPECT_ERRNO(get_config(v, 0xfffffff0u, 8, &blk), EINVAL);
    // The driver's own field waits for what is under way; the others are not its own.
    EXPECT(yield_at(s.disk, 0) == 0);
    EXPECT(set_config_byte(v, offsetof(struct virtio_blk_config, wce), 0) == 0);
    EXPECT(set_config_byte(v, 0, 1) == 0);
    EXPECT(disk_state(s.disk).writeback == 0);
    struct vql_disk_config c = {.size = sizeof(c)};
    struct virtio_blk_config grown = {.capacity = 4096, .wce = 1};
    memcpy(c.config, &grown, sizeof(c.config));
    EXPECT(!take_event(v->config));
    EXPECT(ioctl(s.disk, VQL_IOC_DISK_CONFIG, &c) == 0);
    EXPECT(take_event(v->config));
    EXPECT(get_config(v, 0, VQL_CONFIG_BYTES, &blk) == 0 && blk.capacity == 4096 && blk.wce == 0);
    EXPECT(ioctl(s.disk, VQL_IOC_DISK_BROKEN) == 0 && take_event(v->config));
    EXPECT(get_status(v) == (S_RUNNING | VIRTIO_CONFIG_S_NEEDS_RESET));
    EXPECT(reset(v) == 0 && get_status(v) == 0 && disk_state(s.disk).writeback == 1);
    scene_close(&s);
}

static void recall(void) {
    struct scene s;
    struct call call;
    scene_open(&s);
    call_start(&call, &s.vmm, suspend);
    EXPECT(SOON(5, has(s.disk, VQL_DISK_LEASED | VQL_DISK_RECALL)));
    EXPECT(!call.done && readable(s.disk) == false);
    EXPECT(yield_at(s.disk, 5) == 0);
    EXPECT(call_end(&call) == 0 && call.seconds < 5);
    EXPECT(has(s.disk, VQL_DISK_SUSPENDED));
    EXPECT_ERRNO(acquire(s.disk), EAGAIN);
    EXPECT(vring_base(&s.vmm, 0) == 5 && vring_base(&s.vmm, 1) == 6);
    struct vhost_vring_state base = {.index = 1, .num = 99};
    EXPECT(ioctl(s.vmm.fd, VHOST_SET_VRING_BASE, &base) == 0);
    EXPECT(ioctl(s.vmm.fd, VHOST_VDPA_RESUME) == 0);
    EXPECT(disk_queue(s.disk, 1).next_avail == 99);
    // Its memory was not changed, so the mapping lives.
    EXPECT(is_there(at(&s.memory, SHARED_AT), true));
    int fd = acquire(s.disk);
    EXPECT(fd >= 0);
    // A queue that is stopped waits as well; one that starts does not, but the lease is asked for.
    call_start(&call, &s.vmm, stop_queue);
    EXPECT(SOON(5, has(s.disk, VQL_DISK_RECALL)));
    EXPECT(yield_at(s.disk, 5) == 0 && call_end(&call) == 0);
    EXPECT(disk_queue(s.disk, 1).ready == 0);
    close(fd);
    EXPECT((fd = acquire(s.disk)) >= 0);
    EXPECT(enable_queue(&s.vmm, 1, true) == 0);
    EXPECT(has(s.disk, VQL_DISK_RECALL));
    close(fd);
    scene_close(&s);
}

// The daemon does not answer: it loses what it has mapped, and gets all of it anew.
static void revocation(void) {
    struct scene s;
    struct call call;
    unsigned drain_ms = set_parameter("drain_ms", 300);
    scene_open(&s);
    uint8_t* record = map_record(s.disk);
    fill(record, 256, 5);
    EXPECT(is_there(at(&s.memory, PRIVATE_AT), true));
    EXPECT(!take_event(s.vmm.call[0]) && !take_event(s.vmm.call[1]));
    call_start(&call, &s.vmm, suspend);
    EXPECT(call_end(&call) == -1 && call.seconds > 0.2 && call.seconds < 5);
    EXPECT(take_event(s.vmm.call[0]) && take_event(s.vmm.call[1]));
    EXPECT((disk_state(s.disk).flags & (VQL_DISK_LEASED | VQL_DISK_RECALL | VQL_DISK_SUSPENDED)) ==
           0);
    EXPECT(has(s.disk, VQL_DISK_REVOKED | VQL_DISK_DIRTY | VQL_DISK_RUNNABLE));
    EXPECT(!is_there(record, false) && !is_there(record, true));
    EXPECT(!is_there(at(&s.memory, SHARED_AT), false) &&
           !is_there(at(&s.memory, PRIVATE_AT), true));
    EXPECT_ERRNO(yield_at(s.disk, 1), ESTALE);
    EXPECT(vring_base(&s.vmm, 0) == -1);
    memory_close(&s.memory);
    munmap(record, QUEUES * VQL_INFLIGHT_BYTES(RING));
    record = map_record(s.disk);
    uint8_t kept[256];
    fill(kept, sizeof(kept), 5);
    EXPECT(!memcmp(record, kept, sizeof(kept)));
    memory_open(&s.memory, (int)MUST(acquire(s.disk)));
    EXPECT(has(s.disk, VQL_DISK_LEASED | VQL_DISK_DIRTY) && !has(s.disk, VQL_DISK_REVOKED));
    EXPECT(!memcmp(at(&s.memory, PRIVATE_AT), s.vmm.private, PRIVATE_BYTES));
    // Who has not come to serve anything leaves all of it to the next.
    EXPECT_ERRNO(yield_at(s.disk, 1 << 16), EINVAL);
    EXPECT(yield_at(s.disk, VQL_YIELD_UNTOUCHED) == 0 && has(s.disk, VQL_DISK_DIRTY));
    EXPECT(vring_base(&s.vmm, 0) == -1);
    EXPECT(acquire(s.disk) >= 0);
    EXPECT(yield_at(s.disk, 3) == 0 && !has(s.disk, VQL_DISK_DIRTY));
    EXPECT(vring_base(&s.vmm, 0) == 3);
    EXPECT(acquire(s.disk) >= 0);
    EXPECT(yield_at(s.disk, VQL_YIELD_UNTOUCHED) == 0 && vring_base(&s.vmm, 1) == 4);
    // A reset does not wait longer either, and the record is empty after it.
    EXPECT(acquire(s.disk) >= 0);
    call_start(&call, &s.vmm, reset);
    EXPECT(call_end(&call) == 0 && call.seconds < 5);
    EXPECT(!has(s.disk, VQL_DISK_DIRTY) && !is_there(record, false));
    munmap(record, QUEUES * VQL_INFLIGHT_BYTES(RING));
    record = map_record(s.disk);
    EXPECT(record[0] == 0 && !memcmp(record, record + 1, 255));
    munmap(record, QUEUES * VQL_INFLIGHT_BYTES(RING));
    set_parameter("drain_ms", drain_ms);
    scene_close(&s);
}

// The daemon is killed with the lease; the next one finds what the first wrote down.
static void death(void) {
    struct scene s;
    int told[2];
    scene_open(&s);
    close(s.disk);
    MUST(pipe(told));
    pid_t child = fork();
    if (child == 0) {
        int disk = disk_claim("probe");
        uint8_t* record = map_record(disk);
        struct memory m;
        memory_open(&m, acquire(disk));
        fill(record, 64, 77);
        *at(&m, SHARED_AT + 123) = 45;
        MUST(write(told[1], "x", 1));
        pause();
    }
    char x;
    MUST(read(told[0], &x, 1));
    EXPECT_ERRNO(disk_claim("probe"), EBUSY);
    for (int q = 0; q < QUEUES; q++)
        take_event(s.vmm.call[q]);
    MUST(kill(child, SIGKILL));
    MUST(waitpid(child, NULL, 0));
    // It may have published what it had no more time to tell of.
    for (int q = 0; q < QUEUES; q++)
        EXPECT(take_event(s.vmm.call[q]));
    EXPECT(get_status(&s.vmm) == S_RUNNING && suspend(&s.vmm) == -1);
    EXPECT((s.disk = disk_claim("probe")) >= 0);
    EXPECT(has(s.disk, VQL_DISK_DIRTY | VQL_DISK_RUNNABLE) && !has(s.disk, VQL_DISK_REVOKED));
    uint8_t *record = map_record(s.disk), kept[64];
    fill(kept, sizeof(kept), 77);
    EXPECT(!memcmp(record, kept, sizeof(kept)));
    munmap(record, QUEUES * VQL_INFLIGHT_BYTES(RING));
    memory_close(&s.memory);
    memory_open(&s.memory, (int)MUST(acquire(s.disk)));
    EXPECT(*at(&s.memory, SHARED_AT + 123) == 45 && s.vmm.shared[123] == 45);
    // Killed and never replaced: the VMM can still reset.
    close(s.disk);
    EXPECT(reset(&s.vmm) == 0);
    EXPECT((s.disk = disk_claim("probe")) >= 0 && !has(s.disk, VQL_DISK_DIRTY));
    close(told[0]);
    close(told[1]);
    scene_close(&s);
}

static int remap(int disk, struct vql_disk_remap* about) {
    about->size = sizeof(*about);
    return ioctl(disk, VQL_IOC_DISK_REMAP, about);
}

// No program is there to be asked, so that what is right leaves it to the daemon.
static void remapping(void) {
    struct scene s;
    struct vql_lane_range range = {.ctrl_fd = -1, .sectors = 2048};
    struct vql_disk_lane lane = {
        .size = sizeof(lane), .nranges = 1, .ranges = (uint64_t)(uintptr_t)&range};
    const struct vql_disk_remap good = {.op = VQL_OP_WRITE, .sector = 2040, .sectors = 8};
    struct vql_disk_remap r = good;
    scene_open(&s);
    EXPECT_ERRNO(remap(s.disk, &r), EINVAL); // it has not been told what the disk reaches
    EXPECT(ioctl(s.disk, VQL_IOC_DISK_LANE, &lane) == 0);
    r.verdict = VQL_SERVE;
    EXPECT(remap(s.disk, &r) == 0 && r.verdict == VQL_USER);
    r = good;
    r.index = QUEUES;
    EXPECT_ERRNO(remap(s.disk, &r), EINVAL);
    r = good;
    r.op = VQL_OP_FLUSH;
    EXPECT_ERRNO(remap(s.disk, &r), EINVAL);
    r = good;
    r.sectors = 0;
    EXPECT_ERRNO(remap(s.disk, &r), EINVAL);
    r = good;
    r.sectors = 9; // one beyond the end
    EXPECT_ERRNO(remap(s.disk, &r), EINVAL);
    r = good;
    r.sector = UINT64_MAX - 3; // and round it
    EXPECT_ERRNO(remap(s.disk, &r), EINVAL);
    EXPECT(yield_at(s.disk, 0) == 0);
    r = good;
    EXPECT_ERRNO(remap(s.disk, &r), ESTALE);
    lane.nranges = 0;
    EXPECT(ioctl(s.disk, VQL_IOC_DISK_LANE, &lane) == 0);
    scene_close(&s);
}

static void removal(void) {
    struct scene s;
    struct vql_disk_next next = {.size = sizeof(next)};
    scene_open(&s);
    EXPECT_ERRNO(ioctl(s.disk, VQL_IOC_DISK_REMOVE, 0), EBUSY);
    EXPECT(ioctl(control, VQL_IOC_DISK_NEXT, &next) == 0 && next.claimed == 1);
    EXPECT(!strcmp(next.name, "probe") && !strcmp(next.vdpa, "vqlane-probe"));
    EXPECT(ioctl(s.disk, VQL_IOC_DISK_REMOVE, VQL_REMOVE_LATER) == 0);
    memset(&next, 0, sizeof(next));
    next.size = sizeof(next);
    EXPECT_ERRNO(ioctl(control, VQL_IOC_DISK_NEXT, &next), ENOENT);
    EXPECT_ERRNO(disk_claim("probe"), ENOENT);
    EXPECT(has(s.disk, VQL_DISK_LEASED) && is_there(at(&s.memory, SHARED_AT), true));
    EXPECT(yield_at(s.disk, 0) == 0);
    struct pollfd p = {.fd = s.disk, .events = 0};
    EXPECT(poll(&p, 1, 0) == 0);
    vmm_close(&s.vmm);
    EXPECT(poll(&p, 1, 5000) == 1 && p.revents & POLLHUP);
    struct vql_disk_state st = {.size = sizeof(st)};
    EXPECT_ERRNO(ioctl(s.disk, VQL_IOC_DISK_STATE, &st), ENODEV);
    EXPECT(access("/sys/bus/vdpa/devices/vqlane-probe", F_OK) != 0);
    EXPECT(!is_there(at(&s.memory, SHARED_AT), false));
    memory_close(&s.memory);
    close(s.disk);
}

enum { MANY = 256 };

static void many(void) {
    static int disks[MANY];
    char name[32];
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof(name), "many-%03d", (i * 37) % MANY);
        EXPECT((disks[i] = disk_create(name)) >= 0);
    }
    struct vql_disk_next next = {.size = sizeof(next)};
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof(name), "many-%03d", i);
        EXPECT(ioctl(control, VQL_IOC_DISK_NEXT, &next) == 0 && !strcmp(next.name, name));
        int fd = -1;
        EXPECT(SOON(5, (fd = open_node(name)) >= 0));
        close(fd);
    }
    EXPECT_ERRNO(ioctl(control, VQL_IOC_DISK_NEXT, &next), ENOENT);
    for (int i = 0; i < MANY; i++) {
        EXPECT(ioctl(disks[i], VQL_IOC_DISK_REMOVE, 0) == 0);
        close(disks[i]);
    }
}

// ---- Allocations that fail (fault injection of a debug kernel) ----

static void fault_setting(const char* name, const char* value) {
    char path[100];
    snprintf(path, sizeof(path), "/sys/kernel/debug/failslab/%s", name);
    write_file(path, value, 0);
}

// The file through which allocations of this thread are made to fail. Open all the time: to open it
// takes allocations, which might be those that fail.
static int fail_nth_file(void) {
    static int fd = -1;
    if (fd < 0)
        EXPECT((fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC)) >= 0);
    return fd;
}

// The @nth allocation of this thread from here on fails; 0: none.
static void fail_nth(int nth) {
    char text[20];
    int n = snprintf(text, sizeof(text), "%d", nth);
    EXPECT(pwrite(fail_nth_file(), text, (size_t)n, 0) == n);
}

static bool has_failed(void) {
    char text[20] = {0};
    EXPECT(pread(fail_nth_file(), text, sizeof(text) - 1, 0) > 0);
    fail_nth(0);
    return atoi(text) == 0;
}

// A new map that cannot be taken leaves a disk that does not run, and says so. Then the VMM starts
// anew. True when no allocation was left to fail.
static bool map_without_memory(struct vmm* v, int disk, int nth) {
    const uint64_t plug_at = 0xc0000000;
    EXPECT(iotlb(v, VHOST_IOTLB_BATCH_BEGIN, 0, 0, NULL, 0) == 0);
    EXPECT(iotlb(v, VHOST_IOTLB_UPDATE, plug_at, MIB, v->private, VHOST_ACCESS_RW) == 0);
    take_event(v->config);
    fail_nth(nth);
    iotlb(v, VHOST_IOTLB_BATCH_END, 0, 0, NULL, 0);
    bool failed = has_failed(), broken = get_status(v) & VIRTIO_CONFIG_S_NEEDS_RESET;
    EXPECT(failed || !broken);
    EXPECT(has(disk, VQL_DISK_RUNNABLE) == !broken && take_event(v->config) == broken);
    EXPECT(iotlb(v, VHOST_IOTLB_INVALIDATE, plug_at, MIB, NULL, 0) == 0);
    if (broken) {
        EXPECT(reset(v) == 0);
        vmm_negotiate(v);
        EXPECT(set_status(v, S_RUNNING) == 0);
    }
    EXPECT(has(disk, VQL_DISK_RUNNABLE));
    return !failed;
}

static bool acquire_without_memory(int disk, int nth) {
    uint64_t epoch = disk_state(disk).epoch;
    fail_nth(nth);
    int fd = acquire_at(disk, epoch);
    bool failed = has_failed();
    EXPECT(fd >= 0 || failed);
    if (fd < 0)
        EXPECT((fd = acquire(disk)) >= 0);
    close(fd);
    EXPECT(yield_at(disk, 0) == 0);
    return !failed;
}

static bool pin_without_memory(int nth) {
    uint8_t* memory = map_memory(MIB, nth % 2);
    struct vql_mregion r = {.bytes = MIB, .user = (uint64_t)(uintptr_t)memory};
    struct vql_mspace_create c = {
        .size = sizeof(c), .nregions = 1, .regions = (uint64_t)(uintptr_t)&r};
    fail_nth(nth);
    int fd = ioctl(control, VQL_IOC_MSPACE_CREATE, &c);
    bool failed = has_failed();
    EXPECT(fd >= 0 || failed);
    close(fd);
    munmap(memory, MIB);
    return !failed;
}

static bool is_lent(int disk) {
    return disk_queue(disk, 0).flags & VQL_QUEUE_LENT;
}

// A loan that fails leaves the queue with the daemon, and the next one can be made.
static bool lend_without_memory(int disk, int nth) {
    struct vql_lane_range range = {.ctrl_fd = -1, .sectors = 2048};
    struct vql_disk_lane lane = {
        .size = sizeof(lane), .nranges = 1, .ranges = (uint64_t)(uintptr_t)&range};
    struct vql_disk_lend lend = {.size = sizeof(lend)};
    struct vql_disk_take take = {.size = sizeof(take)};
    fail_nth(nth);
    bool lent = !ioctl(disk, VQL_IOC_DISK_LANE, &lane) && !ioctl(disk, VQL_IOC_DISK_LEND, &lend);
    bool failed = has_failed();
    EXPECT(lent || failed);
    EXPECT(is_lent(disk) == lent);
    EXPECT(ioctl(disk, VQL_IOC_DISK_TAKE, &take) == 0);
    EXPECT(SOON(5, !is_lent(disk)));
    lane.nranges = 0;
    EXPECT(ioctl(disk, VQL_IOC_DISK_LANE, &lane) == 0);
    EXPECT(has(disk, VQL_DISK_RUNNABLE));
    return !failed;
}

static void out_of_memory(void) {
    enum { MOST = 2000 }; // allocations of one call
    int nth = 1;
    if (access("/proc/thread-self/fail-nth", F_OK)) {
        skipped = "this kernel cannot inject failures (KERNEL=debug can)";
        return;
    }
    fault_setting("ignore-gfp-wait", "N");
    fault_setting("verbose", "0"); // no traces in the log
    struct scene s;
    scene_open(&s);
    EXPECT(yield_at(s.disk, 0) == 0);
    while (nth < MOST && !map_without_memory(&s.vmm, s.disk, nth))
        nth++;
    EXPECT(nth > 3 && nth < MOST);
    for (nth = 1; nth < MOST && !acquire_without_memory(s.disk, nth);)
        nth++;
    EXPECT(nth > 1 && nth < MOST);
    for (nth = 1; nth < MOST && !pin_without_memory(nth);)
        nth++;
    EXPECT(nth > 3 && nth < MOST);
    // Empty rings, for the kernel lane reads them.
    memset(s.vmm.shared, 0, DESC_AT(QUEUES));
    int memory = acquire(s.disk);
    EXPECT(memory >= 0);
    for (nth = 1; nth < MOST && !lend_without_memory(s.disk, nth);)
        nth++;
    EXPECT(nth > 6 && nth < MOST);
    close(memory);
    EXPECT(yield_at(s.disk, 0) == 0);
    fault_setting("ignore-gfp-wait", "Y");
    scene_close(&s);
}

static const struct part parts[] = {
    {"creation", creation},
    {"reserved", reserved},
    {"mappings", mappings},
    {"only_vhost_vdpa", only_vhost_vdpa},
    {"negotiation", negotiation},
    {"state", state},
    {"bells", bells},
    {"config", config},
    {"recall", recall},
    {"revocation", revocation},
    {"death", death},
    {"remapping", remapping},
    {"removal", removal},
    {"many", many},
    {"out_of_memory", out_of_memory},
};

int main(int argc, char** argv) {
    return run_parts(parts, sizeof(parts) / sizeof(parts[0]), argc - 1, argv + 1);
}
