// SPDX-License-Identifier: GPL-2.0-only
// What an engine is given: one operation on a contiguous range of one target.
//
// Engines are plain classes with the same few functions, called directly by the poller (the kind
// of a target is looked at once a piece; there is no virtual call on the I/O path):
//
//   bool submit(const piece&)  take it, or false when there is no room now: nothing was done
//   reap                       hand every finished piece's owner and status to the caller
//
// One poller owns one engine of each kind: no locks.
#pragma once

#include "engine/dma.h"
#include "engine/target.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vqlane/barrier.h>
#include <vqlane/io.h>

namespace vql {

struct request;

struct piece {
    request* owner = nullptr;
    target* where = nullptr;
    uint64_t offset = 0;          // bytes on the target
    uint64_t bytes = 0;           // not for FLUSH
    const vql_seg* seg = nullptr; // data of READ and WRITE; lives until the piece is done
    uint32_t nsegs = 0;
    uint64_t skip = 0;        // bytes of *seg that belong to an earlier piece
    uint8_t op = 0;           // enum vql_op
    uint8_t flags = 0;        // enum vql_io_flags
    bool durable = false;     // the cache is write-through: finished means on stable storage
    __u64* bounced = nullptr; // counts the bytes that copy_data() copies; this poller's alone
    // uring
    int16_t buffer = -1;     // registered buffer that holds all of the data, or -1
    bool unpinnable = false; // the data is in memory that the kernel cannot pin
    // nvme: the memory that the data is in, as the target's controller sees it
    const dma_view* dma = nullptr;
};

// Copy @bytes of @p's data, which begins @skip bytes into *@seg, between guest memory and @buffer.
inline void copy_data(const piece& p, const vql_seg* seg, uint64_t skip, uint8_t* buffer,
                      uint64_t bytes, bool to_guest) {
    vql_write_once(p.bounced, *p.bounced + bytes);
    for (; bytes; seg++, skip = 0) {
        const uint64_t here = std::min<uint64_t>(seg->bytes - skip, bytes);
        uint8_t* const guest = static_cast<uint8_t*>(seg->base) + skip;
        if (to_guest)
            std::memcpy(guest, buffer, here);
        else
            std::memcpy(buffer, guest, here);
        buffer += here;
        bytes -= here;
    }
}

} // namespace vql
