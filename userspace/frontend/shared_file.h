// SPDX-License-Identifier: GPL-2.0-only
// A part of a file that a client shares with us, mapped and guarded against its truncation.
#pragma once

#include "base/fd.h"
#include "base/result.h"
#include "frontend/guest_memory.h"

#include <cerrno>
#include <string>
#include <sys/stat.h>

namespace vql {

struct shared_file {
    mapping map;
    uint8_t* start = nullptr; // of the part asked for
    int guard = -1;           // the caller's to remove, before map goes
};

// Map [offset, offset + bytes) of @fd; @what names it in errors.
inline result<shared_file> map_shared_file(const std::string& what, const unique_fd& fd,
                                           uint64_t bytes, uint64_t offset) {
    struct stat st {};
    if (fstat(fd.get(), &st) < 0)
        return errno_error(what, errno);
    if (!bytes || offset + bytes < offset || !S_ISREG(st.st_mode) ||
        offset + bytes > uint64_t(st.st_size))
        return error{what + " lies beyond the end of its file"};
    const uint64_t head = offset & 4095;
    shared_file file;
    file.map = mapping::map(fd.get(), head + bytes, MAP_SHARED, off_t(offset - head));
    if (!file.map)
        return errno_error("cannot map the " + what, errno);
    file.start = file.map.data() + head;
    file.guard = add_guard(file.map.data(), file.map.size());
    if (file.guard < 0)
        return error{"too many shared mappings in the daemon"};
    return file;
}

} // namespace vql
