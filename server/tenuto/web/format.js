// Figures as people read them.

export const NONE = "–";

export const count = (value) => (value == null ? NONE : value.toLocaleString());

export function rate(value) {
  if (value == null) return NONE;
  return value > 0 && value < 9.95 ? value.toFixed(1) : count(Math.round(value));
}

export const percent = (share) => (share == null ? NONE : `${Math.round(share * 100)} %`);

export function seconds(value) {
  if (value == null) return NONE;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  return duration(value);
}

export function duration(value) {
  const minutes = Math.floor(value / 60);
  if (minutes < 1) return `${Math.floor(value)} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function bytes(value) {
  if (value == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (value >= 1024 && power < units.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${value.toFixed(value < 10 && power > 0 ? 1 : 0)} ${units[power]}`;
}

export const clock = (epoch_s) =>
  new Date(epoch_s * 1000).toLocaleTimeString([], {
    hour: "2-digit",
    minute: "2-digit",
    hour12: false,
  });
