// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/blk_device.h"

#include <algorithm>
#include <cstring>
#include <linux/virtio_config.h>
#include <vqlane/limits.h>

namespace vql {

namespace {
constexpr uint64_t bit(int n) {
    return uint64_t{1} << n;
}
constexpr int ring_f_indirect_desc = 28; // linux/virtio_ring.h is not C++
constexpr int ring_f_event_idx = 29;

// Header and status take two descriptors of a request. A driver without indirect descriptors puts
// all of them into the ring, and waits for ever for room that the ring does not have. A ring of two
// holds no request but an indirect one.
uint32_t seg_max(uint32_t queue_size) {
    return std::clamp<uint32_t>(queue_size, 3, VQL_SEG_MAX + 2) - 2;
}
} // namespace

uint64_t blk_features(const blk_geometry& g) {
    uint64_t f = bit(VIRTIO_F_VERSION_1) | bit(ring_f_indirect_desc) | bit(ring_f_event_idx) |
                 bit(VIRTIO_BLK_F_SEG_MAX) | bit(VIRTIO_BLK_F_BLK_SIZE) |
                 bit(VIRTIO_BLK_F_TOPOLOGY) | bit(VIRTIO_BLK_F_FLUSH) |
                 bit(VIRTIO_BLK_F_CONFIG_WCE) | bit(VIRTIO_BLK_F_MQ);
    if (g.read_only)
        return f | bit(VIRTIO_BLK_F_RO);
    f |= bit(VIRTIO_BLK_F_WRITE_ZEROES);
    return g.discard ? f | bit(VIRTIO_BLK_F_DISCARD) : f;
}

virtio_blk_config blk_config(const blk_geometry& g, bool writeback) {
    const uint32_t block_sectors = g.block_bytes >> VQL_SECTOR_SHIFT;
    virtio_blk_config c{};
    c.capacity = g.sectors;
    c.seg_max = seg_max(g.queue_size);
    c.blk_size = g.block_bytes;
    // Guests align to 4 KiB where they can, which suits every drive of today.
    for (uint32_t b = g.block_bytes; b < 4096; b *= 2)
        c.physical_block_exp++;
    c.min_io_size = uint16_t(4096 / g.block_bytes);
    c.wce = writeback;
    c.num_queues = uint16_t(g.queues);
    if (!g.read_only) {
        if (g.discard) {
            c.max_discard_sectors = VQL_MAX_DISCARD_SECTORS;
            c.max_discard_seg = 1;
            c.discard_sector_alignment = std::max(block_sectors, 8u);
        }
        c.max_write_zeroes_sectors = VQL_MAX_DISCARD_SECTORS;
        c.max_write_zeroes_seg = 1;
        c.write_zeroes_may_unmap = g.discard;
    }
    return c;
}

vql_blk_disk blk_disk(const blk_geometry& g, uint64_t features) {
    vql_blk_disk d{};
    d.sectors = g.sectors;
    d.block_bytes = g.block_bytes;
    d.read_only = g.read_only;
    d.discard = features & bit(VIRTIO_BLK_F_DISCARD);
    d.write_zeroes = features & bit(VIRTIO_BLK_F_WRITE_ZEROES);
    d.unmap = g.discard;
    std::memcpy(d.id, g.id.data(), std::min(g.id.size(), size_t{VQL_ID_BYTES}));
    return d;
}

bool blk_durable(uint64_t features, bool writeback) {
    if (features & bit(VIRTIO_BLK_F_CONFIG_WCE))
        return !writeback;
    return !(features & bit(VIRTIO_BLK_F_FLUSH)); // it could not ask for a flush
}

} // namespace vql
