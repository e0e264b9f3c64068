// SPDX-License-Identifier: GPL-2.0-only
// The dirty log of a live migration: one bit per 4 KiB page of guest memory that the device wrote,
// in a bitmap shared with the VMM (vhost-user specification, "Migration").
#pragma once

#include "base/fd.h"
#include "base/result.h"

#include <cstdint>

namespace vql {

class dirty_log {
  public:
    dirty_log() = default;
    ~dirty_log();
    dirty_log(const dirty_log&) = delete;
    dirty_log& operator=(const dirty_log&) = delete;

    // Map the bitmap of @bytes at @offset of @fd.
    result<void> open(const unique_fd& fd, uint64_t bytes, uint64_t offset);

    // Mark [guest, guest + bytes). Any poller; the VMM clears bits at the same time, hence atomic.
    // Release: a page's content is written before its bit. Pages past the bitmap are not logged
    // (the VMM sized it to its memory).
    void mark(uint64_t guest, uint64_t bytes) {
        if (!bytes)
            return;
        for (uint64_t page = guest >> 12; page <= (guest + bytes - 1) >> 12; page++) {
            if (page / 8 >= bits_bytes_)
                return;
            __atomic_fetch_or(&bits_[page / 8], uint8_t(1u << (page % 8)), __ATOMIC_RELEASE);
        }
    }

    bool lost() const;

  private:
    mapping map_;
    uint8_t* bits_ = nullptr;
    uint64_t bits_bytes_ = 0;
    int guard_ = -1;
};

} // namespace vql
