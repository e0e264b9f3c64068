// SPDX-License-Identifier: GPL-2.0-only
// Which files and devices were served as disks already. What looks like another format there was
// written by a guest, which may: so its disk is not refused when the daemon starts again.
#pragma once

#include "base/result.h"

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace vql {

// Kept in a file, a line for each: its identity, size and path. On any thread.
class raw_record {
  public:
    // @file: where it is kept. One that cannot be read is as an empty one.
    explicit raw_record(std::string file);

    // What another file of that name would not have, its inode's number, and its size: no guest
    // makes it smaller, so that one which is was written by somebody else.
    struct id {
        uint64_t inode = 0; // 0: of a block device, which its path alone says
        uint64_t bytes = 0;
    };
    bool has(const std::string& path, const id& now) const;
    // Before the first guest can write. Returns when it is kept, or with why it is not.
    result<void> add(const std::string& path, const id& now);
    // Forget all that are not @wanted: what is found there next time may be anything.
    void keep(const std::function<bool(const std::string& path)>& wanted);

  private:
    result<void> save(const std::string& text) const;
    std::string text() const;

    const std::string file_;
    mutable std::mutex mutex_; // guards what follows
    std::map<std::string, id> known_;
    // Who adds something while another writes waits for the next time, which is one for all that
    // wait: changed_ counts changes, saved_ those that the file has.
    uint64_t changed_ = 0, saved_ = 0;
    bool saving_ = false;
    std::condition_variable told_;
};

} // namespace vql
