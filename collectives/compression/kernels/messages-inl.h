// What a block's message is and what is kept of it, by feedback, over rows of 32 lanes. Included
// once per target, as bodies-inl.h is.
#if defined(THINWIRE_MESSAGES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_MESSAGES_INL_H
#undef THINWIRE_MESSAGES_INL_H
#else
#define THINWIRE_MESSAGES_INL_H
#endif

#include "collectives/compression/kernels/kernels.h"
#ifdef __CUDACC__
#include "collectives/compression/kernels/device_largest.h"
#include "collectives/compression/kernels/device_rows.h"
#else
#include "collectives/compression/kernels/host_blocks-inl.h"
#include "collectives/compression/kernels/host_largest-inl.h"
#include "collectives/compression/kernels/host_packed-inl.h"
#include "collectives/compression/kernels/host_rows-inl.h"
#endif

THINWIRE_ROWS_BEGIN

// What is left of a message that was sent as its signs times `scale`.
template <typename T>
THINWIRE_BODY Row<T> unsent(const Row<T>& message, T scale) {
  return message - select(less(message, zeros<T>()), fill<T>(-scale), fill<T>(scale));
}

// What the messages of a block have in common:
//   form(row)                     the message of a row, from the gradient and the state
//   store_for_recall(row, m)      stores what `recall` needs
//   form_for_recall(row)          both
//   recall(row)                   the message once more, as often as a coding wants it
//   keep_unsent(row, m, decoded)  puts what was not sent of the row in the message's place
//   prefetch(row, ahead)          brings what is formed `ahead` elements further on into the cache
//   zero_changes_nothing          whether keep_unsent has nothing to do for what decodes to zero

// Without feedback.
template <typename T>
struct GradientMessage {
  static constexpr bool zero_changes_nothing = true;
  T* gradient;
  template <typename Place>
  THINWIRE_BODY Row<T> form(Place row) {
    return load(gradient, row);
  }
  template <typename Place>
  THINWIRE_BODY void store_for_recall(Place, const Row<T>&) {}
  template <typename Place>
  THINWIRE_BODY Row<T> form_for_recall(Place row) {
    return form(row);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> recall(Place row) {
    return form(row);
  }
  template <typename Place>
  THINWIRE_BODY void prefetch(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
  }
  template <typename Place>
  THINWIRE_BODY void keep_unsent(Place, const Row<T>&, const Row<T>&) {}
};

// An average of gradients, which is not sent, but reads memory as a message does.
template <typename T>
struct MomentumMessage {
  const T* gradient;
  const T* momentum;
  T keep;
  T share;
  template <typename Place>
  THINWIRE_BODY Row<T> form(Place row) {
    return fill(keep) * load_constant(momentum, row) + fill(share) * load(gradient, row);
  }
  template <typename Place>
  THINWIRE_BODY void prefetch(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
    fetch(momentum, moved(row, ahead));
  }
};

template <typename T>
struct ErrorFeedbackMessage {
  static constexpr bool zero_changes_nothing = true;
  T* gradient;
  const T* error;
  template <typename Place>
  THINWIRE_BODY Row<T> form(Place row) {
    return load(gradient, row) + load_constant(error, row);
  }
  template <typename Place>
  THINWIRE_BODY void store_for_recall(Place row, const Row<T>& message) {
    store(gradient, row, message);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> form_for_recall(Place row) {
    const Row<T> message = form(row);
    store_for_recall(row, message);
    return message;
  }
  template <typename Place>
  THINWIRE_BODY Row<T> recall(Place row) {
    return load(gradient, row);
  }
  template <typename Place>
  THINWIRE_BODY void prefetch(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
    fetch(error, moved(row, ahead));
  }
  template <typename Place>
  THINWIRE_BODY void keep_unsent(Place row, const Row<T>& message, const Row<T>& decoded) {
    store(gradient, row, message - decoded);
  }
};

// Error feedback that keeps the message itself and the scale that it was sent with
// (Residual::sent). What was not sent is formed from them in the next step, so that nothing is left
// to do here.
template <typename T>
struct KeptMessage {
  T* gradient;
  const T* error;
  T sent;
  T* sent_next;
  template <typename Place>
  THINWIRE_BODY Row<T> form(Place row) {
    // Lanes that are not there stay zero: they count in the scale's sum.
    const Row<T> left = there(row, unsent(load_constant(error, row), sent), zeros<T>());
    return load(gradient, row) + left;
  }
  template <typename Place>
  THINWIRE_BODY void store_for_recall(Place row, const Row<T>& message) {
    store(gradient, row, message);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> form_for_recall(Place row) {
    const Row<T> message = form(row);
    store_for_recall(row, message);
    return message;
  }
};

template <typename T>
struct EControlMessage {
  static constexpr bool zero_changes_nothing = false;
  T* gradient;
  const T* error;
  const T* tracker;
  T eta;
  template <typename Place>
  THINWIRE_BODY Row<T> form(Place row) {
    return (fill(eta) * load_constant(error, row) + load(gradient, row)) -
           load_constant(tracker, row);
  }
  template <typename Place>
  THINWIRE_BODY void store_for_recall(Place, const Row<T>&) {}
  template <typename Place>
  THINWIRE_BODY Row<T> form_for_recall(Place row) {
    return form(row);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> recall(Place row) {
    return form(row);
  }
  template <typename Place>
  THINWIRE_BODY void prefetch(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
    fetch(error, moved(row, ahead));
    fetch(tracker, moved(row, ahead));
  }
  template <typename Place>
  THINWIRE_BODY void keep_unsent(Place row, const Row<T>&, const Row<T>& decoded) {
    const Row<T> unsent =
        (load_constant(error, row) + load(gradient, row)) - load_constant(tracker, row);
    store(gradient, row, unsent - decoded);
  }
};

THINWIRE_ROWS_END

#endif
