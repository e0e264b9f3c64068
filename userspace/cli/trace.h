// SPDX-License-Identifier: GPL-2.0-only
// vqlane trace: one line a request.
#pragma once

#include "base/result.h"
#include "cli/client.h"

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vqlane/trace.h>

namespace vql {

struct trace_options {
    std::string disk;            // name; empty: all
    std::string op;              // as op_name() or its beginning; empty: all
    uint64_t slower_than_ns = 0; // these and slower ones only
    uint64_t count = 0;          // end after so many; 0: at a signal
    bool as_json = false;
};

// "read", …; "?" for what is none.
const char* op_name(uint32_t op);
// The operation that @text is the name of, or the beginning of the name of.
result<uint32_t> parse_op(const std::string& text);
// "1ms", "2.5us", "300ns", "1s" → ns.
result<uint64_t> parse_duration(const std::string& text);

std::string trace_heading();
// @disk: the name of the slot's disk. Ends with a newline.
std::string trace_line(const vql_trace_io& io, const std::string& disk);
nlohmann::json trace_json(const vql_trace_io& io, const std::string& disk);

// Until SIGINT or SIGTERM, @o.count, or the daemon's end, which is an error. Prints what was
// dropped when it happens and the sums at the end.
result<void> trace(client& daemon, const trace_options& o);

} // namespace vql
