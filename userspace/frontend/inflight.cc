// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/inflight.h"

#include "base/kmod.h"
#include "frontend/shared_file.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>

namespace vql {

std::vector<uint16_t> inflight_queue::recover(uint16_t used_idx) {
    if (vql_read_once(&header_->version) == 0) { // never used
        vql_store_release(&header_->desc_num, uint16_t(num_));
        vql_store_release(&header_->used_idx, used_idx);
        vql_store_release(&header_->version, uint16_t{1});
    }
    // A batch was published, but death came before its entries were cleared.
    const uint16_t batch = uint16_t(used_idx - vql_read_once(&header_->used_idx));
    uint16_t head = vql_read_once(&header_->last_batch_head);
    for (uint32_t i = 0; i < batch && i < num_ && head < num_; i++) {
        vql_store_release(&desc_[head].inflight, uint8_t{0});
        head = vql_read_once(&desc_[head].next);
    }
    vql_store_release(&header_->used_idx, used_idx);
    last_batch_head_ = vql_read_once(&header_->last_batch_head);

    std::vector<std::pair<uint64_t, uint16_t>> taken;
    for (uint32_t i = 0; i < num_; i++) {
        const uint64_t counter = vql_read_once(&desc_[i].counter);
        if (vql_read_once(&desc_[i].inflight) == 1)
            taken.emplace_back(counter, uint16_t(i));
        counter_ = std::max(counter_, counter + 1);
    }
    std::sort(taken.begin(), taken.end());
    std::vector<uint16_t> heads;
    for (const auto& [counter, index] : taken)
        heads.push_back(index);
    return heads;
}

inflight_region::~inflight_region() {
    if (guard_ >= 0)
        remove_guard(guard_);
}

result<unique_fd> inflight_region::create(uint32_t queues) {
    unique_fd fd(memfd_create("vqlane-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ftruncate(fd.get(), off_t(bytes(queues))) < 0 ||
        fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return errno_error("in-flight region", errno);
    return fd;
}

result<void> inflight_region::open(const unique_fd& fd, uint64_t bytes, uint64_t offset,
                                   uint32_t queues, uint32_t num) {
    if (!vql_queue_size_valid(num) || !queues || queues > VQL_MAX_QUEUES ||
        bytes < inflight_region::bytes(queues, num) || offset % 8)
        return error{"in-flight region of a wrong size"};
    if (bytes >= inflight_region::bytes(queues)) // of our own making
        num = VQL_MAX_QUEUE_SIZE;
    auto file = map_shared_file("in-flight region", fd, bytes, offset);
    if (!file)
        return file.failure();
    map_ = std::move(file->map);
    guard_ = file->guard;
    start_ = file->start;
    queues_ = queues;
    num_ = num;
    return {};
}

result<void> inflight_region::adopt(mapping map, uint32_t queues, uint32_t num) {
    static_assert(VQL_INFLIGHT_BYTES(1024) == inflight_queue::bytes(1024) &&
                  VQL_INFLIGHT_BYTES(2) == inflight_queue::bytes(2));
    guard_ = add_guard(map.data(), map.size());
    if (guard_ < 0)
        return error{"too many shared mappings in the daemon"};
    map_ = std::move(map);
    start_ = map_.data();
    queues_ = queues;
    num_ = num;
    return {};
}

inflight_queue inflight_region::queue(uint32_t index) const {
    if (index >= queues_)
        return {};
    auto* header = reinterpret_cast<inflight_header*>(start_ + index * inflight_queue::bytes(num_));
    return {header, num_};
}

bool inflight_region::lost() const {
    return guard_ >= 0 && guard_tripped(guard_);
}

} // namespace vql
