// SPDX-License-Identifier: GPL-2.0-only
// What a front end is to the daemon, and the daemon to it. A front end is one disk's door for its
// guest: it learns how the guest has set up its queues, and gives them to the daemon's pollers.
//
// Everything here runs on the control thread. What changes under a running queue stops it first (it
// drains: what it took is answered), then takes effect, and then what is complete runs (again).
// While that is under way the front end is busy, and starts nothing else.
#pragma once

#include "base/event_loop.h"
#include "base/log_limiter.h"
#include "base/peer.h"
#include "base/result.h"
#include "frontend/blk_device.h"
#include "frontend/guest_memory.h"
#include "frontend/virtqueue.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace vql {

// What a front end needs of the daemon: a disk, and pollers that serve its queues.
class queue_host {
  public:
    virtual ~queue_host() = default;
    virtual const blk_geometry& geometry() const = 0;
    // Hand @q to its poller. It comes back by stop_queue() only.
    virtual void start_queue(virtqueue& q) = 0;
    // Take no more from @q, wait for what is in flight, publish it, then call @done on the control
    // thread, where the queue then belongs to the caller.
    virtual void stop_queue(virtqueue& q, std::function<void()> done) = 0;
    // From the next round of its poller on @q interrupts by @call, which is signalled once then:
    // what was signalled by the old one up to that moment the driver may have missed.
    virtual void set_call(virtqueue& q, unique_fd call) = 0;
    // Guest memory was mapped, with no queue running. An error: the disk cannot be served with it.
    virtual result<void> memory_mapped(guest_memory& m) = 0;
    // It is about to be unmapped, with no queue running; also after an error of memory_mapped().
    virtual void memory_unmapped(guest_memory& m, std::function<void()> done) = 0;
};

class frontend {
  public:
    virtual ~frontend() = default;
    frontend(const frontend&) = delete;
    frontend& operator=(const frontend&) = delete;

    // Where a guest's VMM attaches: a path, as an operator gives it to the VMM.
    virtual std::string address() const = 0;
    // Let the guest go; @done when no queue runs any more. The object may be destroyed after that,
    // not before.
    virtual void close(std::function<void()> done) = 0;
    // End the disk, which may have a life of its own, for good: close(), or an error and all is as
    // it was. Without @force refused while a guest has it; with it, @done may come only when the
    // guest has let go.
    virtual void remove(bool force, std::function<void(result<void>)> done) = 0;

    virtual bool connected() const = 0;
    // Removed by force, and there until a VMM lets go of it: close() may come first.
    virtual bool waits_for_vmm() const { return false; }
    uint32_t queues_running() const { return running_; }

    // Stop all queues, let @change change what they depend on (the host's geometry, a policy),
    // start them again, and tell the driver.
    virtual void geometry_changes(std::function<void()> change) = 0;
    // A poller found @q broken (its ring_error is set).
    virtual void queue_broken(virtqueue& q) = 0;
    // A poller has taken as much of @q as it may.
    virtual void queue_through(virtqueue&) {}
    // Once a second.
    virtual void tick() { lines_.tick(); }
    // Who has the disk, and who was turned away meanwhile: for the operator.
    struct client_report {
        std::optional<peer> client; // none: nobody, or nobody that we can know of
        uint64_t refused = 0;       // connections turned away, ever
        std::optional<peer> last_refused;
    };
    virtual client_report clients() const { return {}; }
    // What keeps the guest from being served, as far as we can tell; or empty.
    virtual std::string problem() const { return {}; }
    // Who serves queue @index, and why: for the operator.
    struct lane_report {
        const char* lane; // "poll", "kernel", or "none": nobody
        std::string why;
        uint64_t served = 0;  // requests in the kernel lane
        uint32_t refused = 0; // of these, since a remap program sent them beyond the disk
    };
    virtual lane_report lane_of(uint32_t) const { return {"poll", {}, 0, 0}; }
    // Let the guest go if memory was taken away under us. Once a second, when any was.
    virtual void check_memory() = 0;

  protected:
    frontend(event_loop& loop, queue_host& host, std::string name)
        : loop_(loop), host_(host), name_(std::move(name)) {}

    // One of the guest's queues, while it runs and before and after.
    struct ring_state {
        virtqueue vq;
        uint16_t base = 0; // where it goes on in the available ring, while it does not run
        bool running = false;
    };

    // Log "disk NAME@what": what a client or a guest can have us say any number of times, so a line
    // a second.
    void say(log_level level, const std::string& what) { say_line(level, "disk " + name_ + what); }
    void say_line(log_level level, const std::string& line) { lines_.log(level, line); }

    void start_ring(ring_state& r);
    // Stop those of @rings that run, then @then; busy meanwhile.
    void stop_then(std::vector<ring_state*> rings, std::function<void()> then);
    // No longer busy: go on with @then, and with what came up meanwhile.
    void idle_then(const std::function<void()>& then);

    event_loop& loop_;
    queue_host& host_;
    const std::string name_; // the disk's
    bool busy_ = false;
    std::vector<std::function<void()>> when_idle_; // what came up while busy

  private:
    uint32_t running_ = 0;
    log_limiter lines_;
};

} // namespace vql
