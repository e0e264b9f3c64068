// SPDX-License-Identifier: GPL-2.0-only
// The floor: a device that does what no device can do without. For each available entry it writes
// the request's status byte and the used entry, and publishes the index for as many as it found. It
// reads no descriptor and no header; where a status byte is, it was told.
#pragma once

#include "bench/load.h"

#include <atomic>
#include <functional>
#include <thread>

namespace vql::bench {

class echo_device : public guest::transport {
  public:
    // On a thread of its own, on @cpu.
    explicit echo_device(int cpu) : cpu_(cpu) {}
    ~echo_device() override { stop(); }
    echo_device(const echo_device&) = delete;
    echo_device& operator=(const echo_device&) = delete;

    // Serve the queues of @l, which are there, until stop(), which comes before the end of @l.
    void run(load& l);
    void stop();

    uint64_t device_features() override;
    void set_driver_features(uint64_t) override {}
    unsigned max_queues() override { return 64; }
    void share_memory(const guest::guest_memory& memory) override { memory_ = &memory; }
    void start_queues(std::span<const guest::vring_setup> queues) override;
    void read_config(uint32_t offset, std::span<std::byte> bytes) override;

    // Not asked for by a load.
    void disconnect() override {}
    void reconnect() override {}
    bool outlives_daemon() const override { return true; }
    void forget_rings() override {}
    void add_slot(const guest::memory_slot&) override {}
    void remove_slot(const guest::memory_slot&) override {}
    uint16_t stop_queue(unsigned) override { return 0; }
    void enable_queue(unsigned, bool) override {}
    void set_call(unsigned, std::optional<int>) override {}
    bool wait_ring_error(unsigned, guest::milliseconds) override { return false; }
    void write_config(uint32_t, std::span<const std::byte>) override {}
    bool wait_config_change(guest::milliseconds) override { return false; }
    uint8_t status() override { return 0; }
    void set_status(uint8_t) override {}

  private:
    struct ring {
        uint16_t* avail;
        uint8_t* used;
        uint16_t mask;
        uint16_t next;
        std::vector<uint8_t*> status; // by head
    };
    void serve();

    const int cpu_;
    const guest::guest_memory* memory_ = nullptr;
    std::vector<guest::vring_setup> setups_;
    std::vector<ring> rings_;
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

} // namespace vql::bench
