// SPDX-License-Identifier: GPL-2.0-only
// A virtio-blk driver (virtio 1.3 §5.2) on a transport: requests of any shape, several in flight on
// several queues, completions by polling or by interrupt. One thread uses a driver at a time.
// Requests are preallocated: from submit() to next() nothing allocates.
#pragma once

#include "transport.h"

#include <array>
#include <memory>

namespace vql::guest {

constexpr size_t max_segments = 1024; // of one request
constexpr uint16_t usual_segments = 320;

// One request, owned by its driver: its descriptor chain, and then its result.
struct blk_request {
    // Set by whoever shapes the request.
    uint32_t type = 0;
    uint64_t sector = 0;
    std::array<segment, max_segments> chain;
    uint16_t segments = 0;
    bool indirect = false;
    uint64_t status_gpa = 0;
    uint32_t data_in = 0; // bytes the device may write before the status byte
    uint64_t context = 0; // the user's own

    // Set when it has completed.
    uint8_t status = blk_unwritten;
    uint32_t used_bytes = 0;

    // Fixed: memory of its own for a request of the usual shape.
    unsigned queue = 0;
    uint32_t token = 0;
    uint64_t header_gpa = 0;
    uint64_t range_gpa = 0;
    uint64_t own_status_gpa = 0;
    bool in_flight = false;

    std::span<const segment> parts() const { return {chain.data(), segments}; }
    bool ok() const { return status == blk_ok; }
};

// used.len as we define it: bytes written from the beginning of the device-writable part, without
// a gap. A failed request has written nothing but its status.
uint32_t expected_used_bytes(const blk_request& request);

struct blk_result {
    uint8_t status = blk_unwritten;
    uint32_t used_bytes = 0;
};

struct blk_options {
    unsigned queues = 1;
    uint16_t queue_size = 128;
    unsigned depth = 0; // requests per queue; 0: as many as the queue has descriptors
    bool indirect = true;
    uint16_t max_indirect = usual_segments; // the longest table, up to max_segments
    bool event_idx = true;
    bool interrupts = false; // wait on the call eventfd instead of polling the used ring
    // Look at a used ring only after its interrupt, as a kernel's driver does: a lost one is
    // noticed. With interrupts.
    bool interrupts_only = false;
    uint16_t first_index = 0;            // of the rings
    uint64_t features = ~uint64_t{0};    // of those offered, what to take
    bool check_failed_used_bytes = true; // other devices count differently when a request fails
};

class blk_driver {
  public:
    blk_driver(guest_memory& memory, transport& device, const blk_options& options = {});

    // Negotiates, shares the memory and starts empty rings. Also after a device reset: then what
    // was in flight is forgotten, its requests are free again.
    void start();
    // Takes up the rings as they lie in memory: after stop(), or after the device went away.
    void resume();
    // Stops all queues; what the device had taken is complete then.
    void stop();

    const blk_options& options() const { return options_; }
    uint64_t features() const { return features_; }
    blk_config config();
    uint64_t capacity() { return config().capacity; }
    virtqueue_driver& queue(unsigned index) { return *queues_[index]; }
    unsigned in_flight() const;
    guest_memory& memory() { return memory_; }

    // A request to shape and submit; null if all of that queue are in use.
    blk_request* acquire(unsigned queue);
    void release(blk_request& request);
    // The usual shape: header, data in one piece, status.
    void shape(blk_request& request, blk_op op, uint64_t sector, uint64_t data_gpa, uint32_t bytes);
    // Discard or write zeroes, or anything else with such a payload.
    void shape_range(blk_request& request, blk_op op, const blk_range& range);
    // Queues it; false if the ring is full. ring() tells the device.
    bool submit(blk_request& request);
    void ring(unsigned queue);

    // A completed request of that queue, or null.
    blk_request* poll(unsigned queue);
    // A completed request of any queue; throws timeout_error when none comes.
    blk_request& next(milliseconds timeout = default_timeout());

    // One request at a time, through a buffer of the driver's own. write() takes what shall be
    // written, read() fills data even when the request fails (with what was in the buffer).
    blk_result read(uint64_t sector, std::span<std::byte> data, unsigned queue = 0);
    blk_result write(uint64_t sector, std::span<const std::byte> data, unsigned queue = 0);
    blk_result flush(unsigned queue = 0);
    blk_result discard(const blk_range& range, unsigned queue = 0);
    blk_result write_zeroes(const blk_range& range, unsigned queue = 0);
    blk_result get_id(std::string& id, unsigned queue = 0);
    // Submits one request and waits for it; nothing else may be in flight on its queue.
    blk_result execute(blk_request& request);

  private:
    void negotiate();
    void reset_requests();
    // A completed request of queues [first, end).
    blk_request& wait_for(unsigned first, unsigned end, milliseconds timeout);
    bool may_look(unsigned queue);
    bool sleep_until_interrupt(unsigned first, unsigned end, const deadline& until);
    blk_result transfer(blk_op op, uint64_t sector, uint64_t gpa, size_t bytes, unsigned queue);

    struct queue_requests {
        std::vector<std::unique_ptr<blk_request>> all;
        std::vector<blk_request*> free;
    };

    guest_memory& memory_;
    transport& device_;
    blk_options options_;
    uint64_t features_ = 0;
    std::vector<std::unique_ptr<virtqueue_driver>> queues_;
    std::vector<queue_requests> requests_;
    std::vector<uint16_t> base_; // where each queue was stopped
    bool stopped_ = false;
    std::vector<bool> interrupted_; // interrupts_only: and the queue was not found empty since
    unsigned next_queue_ = 0;
};

} // namespace vql::guest
