// SPDX-License-Identifier: GPL-2.0-only
// lane_loss BDF: two disks' queues in the kernel lane, whose controller is reset while nothing is
// under way, so that each of them finds out with its next request. The first one's has a new queue
// pair made, which knows its guest's memory alone; what the others know by then are DMA addresses
// of nothing, or of somebody else. There is no daemon that would hold the mappings. The policy
// "straight" is the remap program.
#include <linux/virtio_ring.h>

#include "vdpa.h"

#define HEADER_AT(q) (DESC_AT(q) + 0xc000) // and the status byte behind it
#define DATA_AT(q) (PRIVATE_AT + (q)*PAGE)

static struct vring_avail* avail_of(struct vmm* v, unsigned q) {
    return (void*)(v->shared + AVAIL_AT(q));
}

static uint8_t* status_of(struct vmm* v, unsigned q) {
    return v->shared + HEADER_AT(q) + sizeof(struct virtio_blk_outhdr);
}

// A request of one block, as a driver makes it available.
static void ask(struct vmm* v, unsigned q, uint32_t type, uint64_t sector) {
    struct vring_desc* desc = (void*)(v->shared + DESC_AT(q));
    struct virtio_blk_outhdr* header = (void*)(v->shared + HEADER_AT(q));
    struct vring_avail* avail = avail_of(v, q);
    uint64_t one = 1;

    *header = (struct virtio_blk_outhdr){.type = type, .sector = sector};
    *status_of(v, q) = 0xff;
    desc[0] = (struct vring_desc){HEADER_AT(q), sizeof(*header), VRING_DESC_F_NEXT, 1};
    desc[1] = (struct vring_desc){DATA_AT(q), block, VRING_DESC_F_NEXT, 2};
    if (type == VIRTIO_BLK_T_IN)
        desc[1].flags |= VRING_DESC_F_WRITE;
    desc[2] = (struct vring_desc){HEADER_AT(q) + sizeof(*header), 1, VRING_DESC_F_WRITE, 0};
    avail->ring[avail->idx % RING] = 0;
    __atomic_store_n(&avail->idx, avail->idx + 1, __ATOMIC_RELEASE);
    MUST(write(v->kick[q], &one, sizeof(one)));
}

static bool is_answered(struct vmm* v, unsigned q) {
    const struct vring_used* used = (void*)(v->shared + USED_AT(q));

    return __atomic_load_n(&used->idx, __ATOMIC_ACQUIRE) == avail_of(v, q)->idx;
}

static bool is_done(struct vmm* v, unsigned q) {
    return SOON(5, is_answered(v, q)) && *status_of(v, q) == VIRTIO_BLK_S_OK;
}

// Does the disk hold there what was written with @seed?
static bool holds(struct vmm* v, unsigned q, uint64_t sector, uint64_t seed) {
    uint8_t want[PAGE];

    fill(want, block, seed);
    memset(v->private + q * PAGE, 0xee, PAGE);
    ask(v, q, VIRTIO_BLK_T_IN, sector);
    return is_done(v, q) && !memcmp(v->private + q * PAGE, want, block);
}

static bool is_lent(int disk, unsigned q) {
    return disk_queue(disk, q).flags & VQL_QUEUE_LENT;
}

static void lend(int disk, unsigned q) {
    struct vql_disk_lend lend = {
        .size = sizeof(lend), .index = q, .next_avail = disk_queue(disk, q).next_avail};

    EXPECT(!ioctl(disk, VQL_IOC_DISK_LEND, &lend));
}

// Both of its queues are lent, and work; sectors from @sector on are its own.
static void disk_begin(struct scene* s, const char* name, uint64_t sector) {
    struct vql_lane_range range = {.ctrl_fd = ctrl, .nsid = 1, .sector = sector, .sectors = 8};
    struct vql_disk_lane lane = {
        .size = sizeof(lane), .nranges = 1, .ranges = (uint64_t)(uintptr_t)&range};

    scene_of(s, name);
    memset(s->vmm.shared, 0, DESC_AT(QUEUES)); // empty rings
    MUST(ioctl(s->disk, VQL_IOC_DISK_LANE, &lane));
    for (unsigned q = 0; q < QUEUES; q++) {
        lend(s->disk, q);
        fill(s->vmm.private + q * PAGE, block, sector + q);
        ask(&s->vmm, q, VIRTIO_BLK_T_OUT, sector + q);
        EXPECT(is_done(&s->vmm, q));
        EXPECT(holds(&s->vmm, q, sector + q, sector + q));
    }
}

static void disk_end(struct scene* s) {
    struct vql_disk_lane none = {.size = sizeof(none)};

    EXPECT(!ioctl(s->disk, VQL_IOC_DISK_LANE, &none));
    scene_close(s);
}

// Its next request on @q is not served, and not lost either: lent again, the queue goes on with it.
static void finds_out(struct scene* s, unsigned q, uint64_t sector) {
    uint8_t untouched[PAGE], want[PAGE];

    memset(untouched, 0xee, PAGE);
    memset(s->vmm.private + q * PAGE, 0xee, PAGE);
    ask(&s->vmm, q, VIRTIO_BLK_T_IN, sector);
    EXPECT(SOON(5, !is_lent(s->disk, q)));
    EXPECT(disk_queue(s->disk, q).returned == VQL_RETURNED_LOST);
    EXPECT(!is_answered(&s->vmm, q) && !memcmp(s->vmm.private + q * PAGE, untouched, PAGE));
    lend(s->disk, q);
    EXPECT(is_done(&s->vmm, q));
    fill(want, block, sector);
    EXPECT(!memcmp(s->vmm.private + q * PAGE, want, block));
}

static void reset_unnoticed(void) {
    struct scene first, second;

    disk_begin(&first, "first", 0);
    disk_begin(&second, "second", 8);
    for (unsigned round = 0; round < 3; round++) {
        MUST(ioctl(ctrl, VQL_IOC_CTRL_RESET));
        finds_out(&first, 0, 0);
        finds_out(&second, 0, 8);
        // Lending one queue again was the others' of that disk, too: they have the same memory.
        EXPECT(is_lent(first.disk, 1) && holds(&first.vmm, 1, 1, 1));
        EXPECT(is_lent(second.disk, 1) && holds(&second.vmm, 1, 9, 9));
    }
    disk_end(&first);
    disk_end(&second);
}

static const struct part parts[] = {
    {"disks that have not noticed a reset reach nothing by the new queue pair", reset_unnoticed},
};

int main(int argc, char** argv) {
    open_ctrl(argc, argv);
    return run_parts(parts, sizeof(parts) / sizeof(parts[0]), 0, NULL);
}
