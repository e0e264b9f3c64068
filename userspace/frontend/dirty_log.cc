// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/dirty_log.h"

#include "frontend/shared_file.h"

namespace vql {

dirty_log::~dirty_log() {
    if (guard_ >= 0)
        remove_guard(guard_);
}

result<void> dirty_log::open(const unique_fd& fd, uint64_t bytes, uint64_t offset) {
    auto file = map_shared_file("dirty log", fd, bytes, offset);
    if (!file)
        return file.failure();
    map_ = std::move(file->map);
    guard_ = file->guard;
    bits_ = file->start;
    bits_bytes_ = bytes;
    return {};
}

bool dirty_log::lost() const {
    return guard_ >= 0 && guard_tripped(guard_);
}

} // namespace vql
