// {fmt}, compiled once: in every file that includes it whole it costs three seconds.
//
// Its functions are weak, as they were when each file had its own: a program that brings the same
// version of {fmt} itself links with this one or its own.
#define FMT_FUNC [[gnu::weak]]
#include <fmt/format-inl.h>

// What headers declare but only the file above defines, of templates.
FMT_BEGIN_NAMESPACE

template FMT_API auto locale_ref::get<std::locale>() const -> std::locale;

namespace detail {

template FMT_API auto thousands_sep_impl<char>(locale_ref) -> thousands_sep_result<char>;
template FMT_API auto thousands_sep_impl<wchar_t>(locale_ref) -> thousands_sep_result<wchar_t>;
template FMT_API auto decimal_point_impl<char>(locale_ref) -> char;
template FMT_API auto decimal_point_impl<wchar_t>(locale_ref) -> wchar_t;
template FMT_API auto dragonbox::to_decimal(float x) noexcept -> dragonbox::decimal_fp<float>;
template FMT_API auto dragonbox::to_decimal(double x) noexcept -> dragonbox::decimal_fp<double>;

}  // namespace detail
FMT_END_NAMESPACE
