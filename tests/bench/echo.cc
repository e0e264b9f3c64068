// SPDX-License-Identifier: GPL-2.0-only
#include "bench/echo.h"

#include <cstring>
#include <future>

namespace vql::bench {

using namespace guest;

void echo_device::stop() {
    stop_ = true;
    if (thread_.joinable())
        thread_.join();
}

uint64_t echo_device::device_features() {
    return bit(feature_version_1) | bit(feature_indirect) | bit(feature_mq);
}

void echo_device::start_queues(std::span<const vring_setup> queues) {
    setups_.assign(queues.begin(), queues.end());
}

void echo_device::read_config(uint32_t offset, std::span<std::byte> bytes) {
    blk_config config{};
    config.capacity = 1ull << 31;
    config.blk_size = 512;
    std::memcpy(bytes.data(), reinterpret_cast<std::byte*>(&config) + offset, bytes.size());
}

void echo_device::run(load& l) {
    for (unsigned q = 0; q < setups_.size(); q++) {
        const vring_setup& s = setups_[q];
        ring r{memory_->as<uint16_t>(s.avail),
               memory_->as<uint8_t>(s.used),
               uint16_t(s.size - 1),
               0,
               {}};
        for (unsigned head = 0; head < s.size; head++)
            r.status.push_back(memory_->as<uint8_t>(l.queue(q).status_gpa(uint16_t(head))));
        rings_.push_back(std::move(r));
    }
    // It begins on this thread's CPU, which is about to be busy.
    std::promise<void> there;
    thread_ = std::thread([this, &there] {
        pin(cpu_);
        there.set_value();
        serve();
    });
    there.get_future().wait();
}

void echo_device::serve() {
    while (!stop_.load(std::memory_order_relaxed)) {
        for (ring& r : rings_) {
            const uint16_t idx = std::atomic_ref(r.avail[1]).load(std::memory_order_acquire);
            if (idx == r.next)
                continue;
            for (; r.next != idx; r.next++) {
                const uint32_t head = r.avail[2 + (r.next & r.mask)];
                *r.status[head] = 0;
                const uint64_t element = head; // and a length of 0
                std::memcpy(r.used + 4 + 8ull * (r.next & r.mask), &element, sizeof(element));
            }
            std::atomic_ref(*reinterpret_cast<uint16_t*>(r.used + 2))
                .store(r.next, std::memory_order_release);
        }
    }
}

} // namespace vql::bench
