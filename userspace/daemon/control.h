// SPDX-License-Identifier: GPL-2.0-only
// The control socket: one JSON object a line each way, for the vqlane command and for scripts.
// Only root can connect (the socket's mode is 0600).
#pragma once

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "base/spare_descriptor.h"
#include "daemon/commands.h"
#include "daemon/server.h"

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace vql {

class control_socket {
  public:
    control_socket(event_loop& loop, server& s, commands& c)
        : loop_(loop), server_(s), commands_(c) {}
    ~control_socket();

    // Listen on RUN_DIR/control.sock. The run directory is locked by us: a socket there is a dead
    // one.
    result<void> listen(const std::string& run_dir);

  private:
    struct client {
        unique_fd fd;
        std::string in, out;
        bool waiting = false;  // a request is under way; the next is read after its reply
        bool progress = false; // … and the client wants to know what it waits for
        std::string about;     // the disk of that request
        std::function<void()> interrupted; // called if the client goes before the reply
    };

    void accept_client();
    void look_for_room();
    void serve(const std::shared_ptr<client>& c, uint32_t events);
    void handle_lines(const std::shared_ptr<client>& c);
    void handle(const std::shared_ptr<client>& c, const std::string& line);
    void dispatch(const std::shared_ptr<client>& c, const nlohmann::json& request);
    void reply(const std::shared_ptr<client>& c, const nlohmann::json& value);
    void send(const std::shared_ptr<client>& c);
    void tell_progress();
    void close(const std::shared_ptr<client>& c);

    nlohmann::json describe(const disk_entry& e) const;
    nlohmann::json stats(const std::string& only, bool histograms) const;

    event_loop& loop_;
    server& server_;
    commands& commands_;
    unique_fd listener_;
    spare_descriptor spare_; // or a client has its place: an operator is still answered
    bool paused_ = false;    // the listener is not looked at until there is room
    std::string path_;
    std::map<int, std::shared_ptr<client>> clients_;
};

} // namespace vql
