"use client";

export default function Greeting() {
  return <h1 id="greeting">before</h1>;
}
