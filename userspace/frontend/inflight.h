// SPDX-License-Identifier: GPL-2.0-only
// In-flight tracking: which requests were taken from a queue and not answered, in memory that the
// VMM, or the kernel module, keeps while the daemon is gone (vhost-user specification, "Inflight
// I/O tracking", split virtqueue). A daemon that takes over answers exactly those, in the order
// they were taken.
//
// The poller is the only writer. A killed process leaves the stores it made, in program order; each
// step below is a release store, so the compiler keeps that order too.
#pragma once

#include "base/fd.h"
#include "base/result.h"

#include <cstdint>
#include <memory>
#include <vector>
#include <vqlane/vring.h>

namespace vql {

struct inflight_desc { // struct DescStateSplit
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};
static_assert(sizeof(inflight_desc) == 16);

struct inflight_header { // struct QueueRegionSplit
    uint64_t features;
    uint16_t version; // 1
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
};
static_assert(sizeof(inflight_header) == 16);

// The part of one queue; empty (false) when in-flight tracking is off.
class inflight_queue {
  public:
    inflight_queue() = default;
    inflight_queue(inflight_header* header, uint32_t num)
        : header_(header), desc_(reinterpret_cast<inflight_desc*>(header + 1)), num_(num),
          batch_(num) {}

    static constexpr uint64_t bytes(uint32_t num) {
        // Whole cache lines, so that two queues' pollers do not share one.
        return (sizeof(inflight_header) + uint64_t{num} * sizeof(inflight_desc) + 63) & ~63ull;
    }

    explicit operator bool() const { return header_ != nullptr; }
    uint32_t num() const { return num_; }

    // @head was taken from the available ring. @head < num.
    void take(uint16_t head) {
        vql_store_release(&desc_[head].counter, counter_++);
        vql_store_release(&desc_[head].inflight, uint8_t{1});
    }

    // @head is about to be pushed to the used ring.
    void push(uint16_t head) {
        vql_store_release(&desc_[head].next, last_batch_head_);
        vql_store_release(&header_->last_batch_head, head);
        last_batch_head_ = head;
        batch_[batch_size_++] = head;
    }

    // The used index was published and is now @used_idx.
    void published(uint16_t used_idx) {
        for (uint32_t i = 0; i < batch_size_; i++)
            vql_store_release(&desc_[batch_[i]].inflight, uint8_t{0});
        batch_size_ = 0;
        vql_store_release(&header_->used_idx, used_idx);
    }

    // A queue starts whose used ring stands at @used_idx: settle a batch that was published but not
    // recorded, and return the heads still in flight, oldest first. Everything in the region is the
    // VMM's to spoil: values are checked, loops bounded.
    std::vector<uint16_t> recover(uint16_t used_idx);

  private:
    inflight_header* header_ = nullptr;
    inflight_desc* desc_ = nullptr;
    uint32_t num_ = 0;
    uint64_t counter_ = 0;
    uint16_t last_batch_head_ = 0;
    uint32_t batch_size_ = 0; // at most num: requests in flight are bounded by the queue size
    std::vector<uint16_t> batch_;
};

// The region of all queues of one device: made here (GET_INFLIGHT_FD), received (SET_INFLIGHT_FD),
// or the kernel module's.
class inflight_region {
  public:
    inflight_region() = default;
    ~inflight_region();
    inflight_region(const inflight_region&) = delete;
    inflight_region& operator=(const inflight_region&) = delete;

    static uint64_t bytes(uint32_t queues, uint32_t num = VQL_MAX_QUEUE_SIZE) {
        return uint64_t{queues} * inflight_queue::bytes(num);
    }
    // A sealed, zeroed memfd for @queues queues. It has room for the largest rings: VMMs ask for
    // one size and may give their guest another.
    static result<unique_fd> create(uint32_t queues);

    // Map a region for @queues queues of at least @num entries.
    result<void> open(const unique_fd& fd, uint64_t bytes, uint64_t offset, uint32_t queues,
                      uint32_t num);
    // Take the record of a vDPA disk, of the layout of @queues queues of @num entries.
    result<void> adopt(mapping map, uint32_t queues, uint32_t num);
    // The part of queue @index, or an empty one when the region does not cover it.
    inflight_queue queue(uint32_t index) const;
    bool lost() const;

  private:
    mapping map_;
    uint8_t* start_ = nullptr;
    uint32_t queues_ = 0, num_ = 0;
    int guard_ = -1;
};

} // namespace vql
