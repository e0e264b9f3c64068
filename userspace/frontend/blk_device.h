// SPDX-License-Identifier: GPL-2.0-only
// The virtio-blk device as its driver sees it, whatever the transport: features and config space
// (virtio 1.3 §5.2.3, §5.2.4).
#pragma once

#include <cstdint>
#include <linux/virtio_blk.h>
#include <string>
#include <vqlane/blk.h>

namespace vql {

struct blk_geometry {
    std::string id;       // what GET_ID returns, at most VQL_ID_BYTES
    uint64_t sectors = 0; // of 512 bytes
    uint32_t block_bytes = 512;
    bool read_only = false;
    bool discard = false; // the targets can give space back, and are to
    uint32_t queues = 1;
    uint32_t queue_size = 1024;
};

// VIRTIO_BLK_F_… and VIRTIO_F_… bits offered.
uint64_t blk_features(const blk_geometry& g);
virtio_blk_config blk_config(const blk_geometry& g, bool writeback);
// What one queue needs of it, with @features as negotiated.
vql_blk_disk blk_disk(const blk_geometry& g, uint64_t features);
// Must a write be on stable storage when it is answered (virtio 1.3 §5.2.6.2)?
bool blk_durable(uint64_t features, bool writeback);

} // namespace vql
