// SPDX-License-Identifier: GPL-2.0-only
// What the hostile tests share: a daemon with a victim and a bystander, clients in every state to
// attack from, and the check that nothing but the attacker suffered.
#pragma once

#include "e2e.h"

namespace vql::guest {

constexpr unsigned victim_queues = 2;
constexpr unsigned victim_queue_size = 256;
constexpr uint64_t hostile_disk_bytes = 8 << 20;

// A small guest with running queues.
guest_options small_guest();

class hostile_setup {
  public:
    hostile_setup();

    const std::string& victim() const { return victim_; } // where guests find it
    test_daemon& daemon() { return daemon_; }

    // The daemon lives, the victim takes a new client and serves it, and the bystander's I/O goes
    // on. Throws with the reason if not.
    void check_serving();
    // Cheaper, for the many: the daemon lives, the victim answers a new client, the bystander runs.
    void check_alive();
    // All descriptors and mappings that clients gave are gone.
    void check_nothing_leaked();

  private:
    struct resources {
        size_t descriptors;
        size_t mappings;
    };
    resources count_resources() const;

    test_storage storage_;
    test_daemon daemon_;
    std::string victim_;
    std::unique_ptr<bystander> other_;
    resources before_;
};

// For tests whose subject is the vhost-user protocol.
struct vhost_user_setup : vhost_user_only, hostile_setup {
    vhost_user_setup() : vhost_user_only("its subject is the vhost-user protocol") {}
};

// A vhost-user client of the victim. `running`: with memory and queues; else just connected, with
// protocol features negotiated.
struct attacker {
    std::unique_ptr<test_guest> guest;
    std::optional<vhost_user_client> plain;

    attacker(const std::string& socket, bool running);
    vhost_user_client& client() { return guest ? guest->vhost_user().client() : *plain; }
};

// True if the last request was answered with an error, or the connection was closed. False if it
// was answered with success, or not at all in time.
bool refused_or_dropped(vhost_user_client& client);

} // namespace vql::guest
