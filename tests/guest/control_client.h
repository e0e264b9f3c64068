// SPDX-License-Identifier: GPL-2.0-only
// The daemon's control socket: a JSON object a line, each way.
#pragma once

#include "posix.h"

#include <nlohmann/json_fwd.hpp>

namespace vql::guest {

class control_client {
  public:
    explicit control_client(const std::string& path);

    // Sends the request and returns the whole reply.
    nlohmann::json call(const nlohmann::json& request);
    // The result of a request that must succeed; throws with the error otherwise.
    nlohmann::json result(const nlohmann::json& request);
    // The error of a request that must fail; throws if it succeeds.
    std::string error(const nlohmann::json& request);

    // Raw, for garbage. receive_line throws disconnected at the end of the connection.
    void send_text(std::string_view text);
    std::string receive_line(milliseconds timeout = default_timeout());
    void finish_sending();

  private:
    unique_fd socket_;
    std::string received_;
};

} // namespace vql::guest
