// SPDX-License-Identifier: GPL-2.0-only
// The vhost-user front end: one disk's socket, one VMM at a time. Another one is turned away at
// once, for a VMM that waits for its device to answer hangs as a whole; but one that comes while
// its predecessor is being let go has its turn then.
//
// A message that changes what a running queue depends on takes effect when the queues concerned
// stand still. While that is under way no further message is read.
#pragma once

#include "base/fd.h"
#include "base/result.h"
#include "frontend/dirty_log.h"
#include "frontend/frontend.h"
#include "frontend/guest_memory.h"
#include "frontend/inflight.h"
#include "frontend/socket_access.h"
#include "frontend/vhost_user_proto.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace vql {

class vhost_user_server : public frontend {
  public:
    vhost_user_server(event_loop& loop, queue_host& host, std::string name);
    ~vhost_user_server() override;

    // Listen on @path. A socket that a dead daemon left there is replaced; anything else is
    // refused.
    result<void> listen(const std::string& path, const socket_access& access);

    std::string address() const override { return path_; }
    void close(std::function<void()> done) override;
    void remove(bool force, std::function<void(result<void>)> done) override;
    bool connected() const override { return bool(client_); }
    void geometry_changes(std::function<void()> change) override;
    void queue_broken(virtqueue& q) override;
    void check_memory() override;
    void tick() override;
    client_report clients() const override;
    std::string problem() const override;

  private:
    struct vring : ring_state {
        uint32_t num = 0;
        std::optional<vhost_user::vring_addr> addr;
        bool enabled = false;
        bool kick_set = false; // SET_VRING_KICK was seen since the ring was last stopped
        uint64_t kicks = 0;    // what its kick eventfd had counted when it started
        uint64_t answered = 0; // vq.answered then
    };
    // What a message's handler says.
    struct outcome {
        std::string refusal; // empty: done
        std::vector<uint8_t> reply;
        int reply_fd = -1;
        bool has_reply = false;
    };

    void accept_client();
    void admit(unique_fd client);
    void begin(unique_fd client, peer who);
    void turn_away(const peer& who, const std::string& why);
    void read_messages();
    void handle(vhost_user::message m);
    void finish(vhost_user::message& m, outcome o);
    void drop(const std::string& reason);
    void client_gone(std::function<void()> then);
    void forget_client();

    std::vector<ring_state*> rings_to_stop(const vhost_user::message& m);
    std::vector<ring_state*> all_rings();
    bool waits_for_memory(const vring& r) const;
    bool kicked_without_work(const vring& r) const;
    void run_complete_rings();
    result<void> prepare_ring(vring& r);
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
    vring* ring_at(uint64_t index);

    std::string path_;
    unique_fd listener_, client_, backend_req_;
    bool listening_ = false;
    bool paused_ = false; // the listener is not looked at until the next tick
    bool ending_ = false; // the client is being let go
    peer who_;            // client_
    unique_fd next_;      // comes after the one that is leaving
    peer next_who_;
    client_report turned_away_;
    std::string dropped_;      // why the last client was dropped, until rings run again
    std::string seen_problem_; // at the last tick
    std::string told_problem_; // what the log has
    bool size_told_ = false;   // the driver was asked to look at its configuration

    vhost_user::message_reader reader_;
    uint64_t features_ = 0;
    uint64_t protocol_features_ = 0;
    uint8_t status_ = 0;
    bool writeback_ = true;
    guest_memory memory_;
    std::unique_ptr<dirty_log> log_;
    std::unique_ptr<inflight_region> inflight_;
    std::vector<std::unique_ptr<vring>> rings_;
};

} // namespace vql
