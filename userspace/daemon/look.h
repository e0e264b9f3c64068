// SPDX-License-Identifier: GPL-2.0-only
// What there is at paths, without waiting for storage longer than a limit.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <sys/stat.h>
#include <tuple>
#include <vector>

namespace vql {

// What was seen at a path.
struct sight {
    bool answered = false;
    int error = 0;        // of stat(2)
    int folder_error = 0; // … of the folder that it is in
    struct stat st {};
    bool block_device = false;
    bool read_only = false;     // cannot be written
    uint64_t bytes = 0;         // a file's or device's size
    uint32_t block_bytes = 512; // a device's logical block
    std::string other;          // see other_contents()

    // Whether it is block device or file, and which: equal for all names of one.
    using id = std::tuple<bool, uint64_t, uint64_t>;
    id identity() const {
        return block_device ? id{true, st.st_rdev, 0} : id{false, st.st_dev, st.st_ino};
    }
};

// Look at all of @paths, in threads. Those that have not answered when nothing more has for @limit
// say so; their threads end when storage lets them.
std::map<std::string, sight> look_at(const std::vector<std::string>& paths,
                                     std::chrono::milliseconds limit);

} // namespace vql
