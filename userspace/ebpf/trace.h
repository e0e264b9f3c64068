// SPDX-License-Identifier: GPL-2.0-only
// Requests of both lanes as they end, from the module's tracepoint and vqlaned's probe, by way of a
// BPF ring buffer. For the vqlane command; the daemon traces nobody.
#pragma once

#include "base/result.h"

#include <functional>
#include <memory>
#include <string>
#include <sys/types.h>
#include <vqlane/trace.h>

namespace vql {

class request_tracer {
  public:
    struct filter {
        uint32_t slot = VQL_TRACE_ANY;
        uint32_t op = VQL_TRACE_ANY; // enum vql_op
        uint64_t slower_than_ns = 0;
    };
    using callback = std::function<void(const vql_trace_io&)>;

    // Attach to vqlaned @daemon and to the module, where it is loaded. Fails, naming what refused,
    // when neither can be.
    static result<std::unique_ptr<request_tracer>> open(pid_t daemon, const filter& f, callback cb);
    virtual ~request_tracer() = default;

    // Call back for what has ended, waiting up to @timeout_ms for the first. False: interrupted.
    virtual result<bool> wait(int timeout_ms) = 0;
    // Detach, and call back for what has ended until then.
    virtual void finish() = 0;
    // Requests that passed the filter but found the ring buffer full.
    virtual uint64_t dropped() const = 0;
    // Why one of the lanes is not seen, if so.
    virtual const std::string& warning() const = 0;
};

} // namespace vql
