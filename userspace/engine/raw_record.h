// SPDX-License-Identifier: GPL-2.0-only
// Which files and devices were served as disks already. What looks like another format there was
// written by a guest, which may: so its disk is not refused when the daemon starts again.
#pragma once

#include "base/result.h"

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace vql {

// Kept in a file, a line for each: its identity and path. On any thread.
class raw_record {
  public:
    // @file: where it is kept. One that cannot be read is as an empty one.
    explicit raw_record(std::string file);

    // @identity: what another file of that name would not have, its inode's number.
    bool has(const std::string& path, uint64_t identity) const;
    // Before the first guest can write. An error when it cannot be kept.
    result<void> add(const std::string& path, uint64_t identity);
    // Forget all that are not @wanted: what is found there next time may be anything.
    void keep(const std::function<bool(const std::string& path)>& wanted);

  private:
    result<void> save() const;

    const std::string file_;
    mutable std::mutex mutex_; // guards what follows, and the file
    std::map<std::string, uint64_t> known_;
};

} // namespace vql
