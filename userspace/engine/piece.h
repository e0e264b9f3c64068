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

#include "engine/target.h"

#include <cstdint>
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
    uint64_t skip = 0;    // bytes of *seg that belong to an earlier piece
    uint8_t op = 0;       // enum vql_op
    uint8_t flags = 0;    // enum vql_io_flags
    bool durable = false; // the cache is write-through: finished means on stable storage
    int16_t buffer = -1;  // registered buffer that holds all of the data, or -1
};

} // namespace vql
