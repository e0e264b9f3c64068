// SPDX-License-Identifier: GPL-2.0-only
// virtio 1.3 as the driver sees it. Written from the specification and shared with nobody: if the
// device's own structures are wrong, these are not.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vql::guest {

// §2.1 device status.
enum : uint8_t {
    status_acknowledge = 1,
    status_driver = 2,
    status_driver_ok = 4,
    status_features_ok = 8,
    status_needs_reset = 0x40,
    status_failed = 0x80,
};

// Feature bits: §5.2.3 (block device), §6 (reserved), vhost-user.
enum feature : unsigned {
    feature_seg_max = 2,
    feature_ro = 5,
    feature_blk_size = 6,
    feature_flush = 9,
    feature_topology = 10,
    feature_config_wce = 11,
    feature_mq = 12,
    feature_discard = 13,
    feature_write_zeroes = 14,
    feature_log_all = 26,
    feature_indirect = 28,
    feature_event_idx = 29,
    feature_protocol = 30,
    feature_version_1 = 32,
    feature_access_platform = 33,
};

constexpr uint64_t bit(unsigned n) {
    return uint64_t{1} << n;
}

// §2.7 split virtqueues.
struct vring_descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
static_assert(sizeof(vring_descriptor) == 16);

enum : uint16_t {
    desc_next = 1,
    desc_write = 2,
    desc_indirect = 4,
    avail_no_interrupt = 1,
    used_no_notify = 1,
};

struct vring_used_element {
    uint32_t id;
    uint32_t len;
};
static_assert(sizeof(vring_used_element) == 8);

// Both rings are { flags, idx, ring[], event }; sizes and alignments of §2.7.
constexpr uint64_t desc_table_bytes(unsigned size) {
    return uint64_t{16} * size;
}
constexpr uint64_t avail_ring_bytes(unsigned size) {
    return 6 + uint64_t{2} * size;
}
constexpr uint64_t used_ring_bytes(unsigned size) {
    return 6 + uint64_t{8} * size;
}

// §5.2.6 block device operation.
enum class blk_op : uint32_t {
    read = 0,
    write = 1,
    flush = 4,
    get_id = 8,
    discard = 11,
    write_zeroes = 13,
};

enum blk_status : int {
    blk_ok = 0,
    blk_ioerr = 1,
    blk_unsupp = 2,
    blk_unwritten = 0xee, // what the driver puts there first; no device answers it
};

struct blk_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};
static_assert(sizeof(blk_header) == 16);

// The payload of discard and write zeroes.
struct blk_range {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
};
static_assert(sizeof(blk_range) == 16);
constexpr uint32_t range_unmap = 1;

constexpr uint32_t sector_bytes = 512;
constexpr uint32_t id_bytes = 20;

// §5.2.4 device configuration layout, as far as the offered features reach.
struct blk_config {
    uint64_t capacity;
    uint32_t size_max;
    uint32_t seg_max;
    uint16_t cylinders;
    uint8_t heads;
    uint8_t sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp;
    uint8_t alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback;
    uint8_t unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors;
    uint32_t max_discard_seg;
    uint32_t discard_sector_alignment;
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
};
static_assert(offsetof(blk_config, seg_max) == 12);
static_assert(offsetof(blk_config, blk_size) == 20);
static_assert(offsetof(blk_config, writeback) == 32);
static_assert(offsetof(blk_config, num_queues) == 34);
static_assert(offsetof(blk_config, max_discard_sectors) == 36);
static_assert(offsetof(blk_config, write_zeroes_may_unmap) == 56);
static_assert(sizeof(blk_config) == 64); // 60 and the tail that alignment adds
constexpr size_t blk_config_bytes = 60;

} // namespace vql::guest
