// SPDX-License-Identifier: GPL-2.0-only
// The vhost-user front end: one disk's socket, one VMM at a time.
//
// Everything here runs on the control thread. A message that changes what a running queue depends
// on first stops the queues concerned (they drain: what they took is answered), then takes effect,
// and then whatever is complete runs (again). While that is under way no further message is read.
#pragma once

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "frontend/blk_device.h"
#include "frontend/dirty_log.h"
#include "frontend/guest_memory.h"
#include "frontend/inflight.h"
#include "frontend/vhost_user_proto.h"
#include "frontend/virtqueue.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace vql {

// What the front end needs of the daemon: a disk, and pollers that serve its queues.
class queue_host {
  public:
    virtual ~queue_host() = default;
    virtual const blk_geometry& geometry() const = 0;
    // Hand @q to its poller. It comes back by stop_queue() only.
    virtual void start_queue(virtqueue& q) = 0;
    // Take no more from @q, wait for what is in flight, publish it, then call @done on the control
    // thread, where the queue then belongs to the caller.
    virtual void stop_queue(virtqueue& q, std::function<void()> done) = 0;
    // Run @fn on the poller that serves @q, between two of its rounds.
    virtual void with_queue(virtqueue& q, std::function<void()> fn) = 0;
    // Guest memory was mapped, or is about to be unmapped, with no queue running.
    virtual void memory_mapped(guest_memory& m) = 0;
    virtual void memory_unmapped(guest_memory& m, std::function<void()> done) = 0;
};

class vhost_user_server {
  public:
    vhost_user_server(event_loop& loop, queue_host& host, std::string name);
    ~vhost_user_server();
    vhost_user_server(const vhost_user_server&) = delete;
    vhost_user_server& operator=(const vhost_user_server&) = delete;

    // Listen on @path. A socket that a dead daemon left there is replaced; anything else is
    // refused.
    result<void> listen(const std::string& path, uint32_t mode);
    // Drop the client, stop listening, remove the socket; @done when no queue runs any more. The
    // object may be destroyed after that, not before.
    void close(std::function<void()> done);

    bool connected() const { return bool(client_); }
    uint32_t queues_running() const;

    // Stop all queues, let @change change the host's geometry, start them again, tell the driver.
    void geometry_changes(std::function<void()> change);
    // A poller found @q broken (its ring_error is set).
    void queue_broken(virtqueue& q);
    // Drop the client if memory it shares was taken away under us. Once a second.
    void check_memory();

  private:
    struct ring_state {
        virtqueue vq;
        uint32_t num = 0;
        uint16_t base = 0;
        std::optional<vhost_user::vring_addr> addr;
        bool enabled = false;
        bool kick_set = false; // SET_VRING_KICK was seen since the ring was last stopped
        bool running = false;
    };
    // What a message's handler says.
    struct outcome {
        std::string refusal; // empty: done
        std::vector<uint8_t> reply;
        int reply_fd = -1;
        bool has_reply = false;
    };

    void accept_client();
    void read_messages();
    void handle(vhost_user::message m);
    void finish(vhost_user::message& m, outcome o);
    void drop(const std::string& reason);
    void client_gone(std::function<void()> then);
    void forget_client();

    void idle_then(const std::function<void()>& then);
    void stop_then(std::vector<ring_state*> rings, std::function<void()> then);
    std::vector<ring_state*> rings_to_stop(const vhost_user::message& m);
    std::vector<ring_state*> all_rings();
    void run_complete_rings();
    result<void> prepare_ring(ring_state& r);
    void reset_rings();
    void tell_config_change();

    outcome apply(vhost_user::message& m);
    outcome apply_vring(vhost_user::message& m);
    outcome set_features(uint64_t features);
    outcome set_mem_table(vhost_user::message& m);
    outcome set_vring_addr(const vhost_user::vring_addr& a);
    outcome set_vring_fd(vhost_user::message& m);
    outcome get_config(const vhost_user::message& m);
    outcome set_config(const vhost_user::message& m);
    outcome get_inflight(const vhost_user::message& m);
    outcome set_inflight(vhost_user::message& m);
    outcome set_log_base(vhost_user::message& m);
    bool memory_message(uint32_t request) const;

    static outcome refuse(std::string why);
    template <class T>
    static outcome reply(const T& value);
    ring_state* ring_at(uint64_t index);

    event_loop& loop_;
    queue_host& host_;
    std::string name_, path_;
    unique_fd listener_, client_, backend_req_;
    bool listening_ = false;
    bool busy_ = false;   // a message or the client's end waits for queues to stop
    bool ending_ = false; // the client is being let go
    std::vector<std::function<void()>> when_idle_; // what came up while busy

    vhost_user::message_reader reader_;
    uint64_t features_ = 0;
    uint64_t protocol_features_ = 0;
    uint8_t status_ = 0;
    bool writeback_ = true;
    guest_memory memory_;
    std::unique_ptr<dirty_log> log_;
    std::unique_ptr<inflight_region> inflight_;
    std::vector<std::unique_ptr<ring_state>> rings_;
};

} // namespace vql
